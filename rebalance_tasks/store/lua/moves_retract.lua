-- Take a flip back: the source changed after it was copied, so the source is the truth again.
-- WITH batches
-- KEYS  1 lease  2 states  3 forwarding  4 moved  5 locations  6 frees  7 usage  8 batches moved  9 batches to be freed
-- ARGV  1 epoch  2 source node  3 target node  4 1 = keep locations  5 "<job>/<group>/<stretch>"  6.. move index, object key, size …
-- Returns number of moves taken back, or -1 when the lease is stale
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return -1 end
local source, target = ARGV[2], ARGV[3]
local n = 0
local back = {}
for i = 6, #ARGV, 3 do
  local index, key = tonumber(ARGV[i]), ARGV[i + 1]
  if redis.call('GETRANGE', KEYS[2], index, index) == 'l' then
    redis.call('SETRANGE', KEYS[2], index, 'p')
    local entry = redis.call('HGET', KEYS[3], key)
    if entry and string.sub(entry, 1, #target + 1) == target .. '|' then
      redis.call('HDEL', KEYS[3], key)
    end
    redis.call('ZREM', KEYS[4], key)
    if ARGV[4] == '1' and redis.call('HGET', KEYS[5], key) == target then redis.call('HSET', KEYS[5], key, source) end
    redis.call('HDEL', KEYS[6], source .. '\0' .. key)
    if ARGV[i + 2] ~= '0' then
      redis.call('HINCRBY', KEYS[7], target, '-' .. ARGV[i + 2])
      redis.call('HINCRBY', KEYS[7], source, ARGV[i + 2])
    end
    back[index] = true
    n = n + 1
  end
end
if n > 0 then
  take_out(KEYS[9], ARGV[5], back)
  local _, forgotten = take_out(KEYS[8], ARGV[5], back)
  if forgotten then redis.call('ZREM', KEYS[4], '\0' .. ARGV[5]) end
end
return n
