-- Forget keys that were moved long ago, with their forwardings.
-- KEYS  1 forwarding  2 moved
-- ARGV  1 most keys to look at  2 ms for which a moved key is remembered
-- Returns number forgotten
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - tonumber(ARGV[2]), 'LIMIT', 0, ARGV[1])
for _, key in ipairs(due) do
  redis.call('HDEL', KEYS[1], key)
  redis.call('ZREM', KEYS[2], key)
end
return #due
