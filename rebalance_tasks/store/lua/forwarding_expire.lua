-- Forget keys that were moved long ago, with their forwardings: each by itself, or a batch with all its keys.
-- KEYS  1 forwarding  2 moved  3 batches moved
-- ARGV  1 ms for which a moved key is remembered  2 "<job>/<group>/<stretch>" of a batch, or ''  3.. object key …
-- Returns number forgotten. A forwarding that a later move wrote, or that was promised for longer, stays until it is over.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local keep = tonumber(ARGV[1])
local batch = ARGV[2] ~= '' and '\0' .. ARGV[2]
local function is_due(member)
  local at = redis.call('ZSCORE', KEYS[2], member)
  return at and tonumber(at) <= now - keep
end
if batch and not is_due(batch) then return 0 end
local forgotten = 0
for i = 3, #ARGV do
  local key = ARGV[i]
  if batch or is_due(key) then
    local expires = tonumber(string.match(redis.call('HGET', KEYS[1], key) or '', '|(%d+)$') or '0')
    if expires <= now then
      redis.call('HDEL', KEYS[1], key)
      if not batch then redis.call('ZREM', KEYS[2], key) end
    elseif not batch or not redis.call('ZSCORE', KEYS[2], key) then
      redis.call('ZADD', KEYS[2], expires - keep, key)
    end
    forgotten = forgotten + 1
  end
end
if batch then
  redis.call('ZREM', KEYS[2], batch)
  redis.call('HDEL', KEYS[3], ARGV[2])
end
return forgotten
