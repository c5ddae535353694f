-- Forget trash that is gone from its node, of one move or of a batch; what is left of it is looked at again later.
-- KEYS  1 trash  2 batches in the trash  3 trash due  4 awaiting
-- ARGV  1 1 = a batch  2 move id, or "<job>/<group>/<stretch>"  3 node  4 bytes that are gone  5 when to look again (ms from now)
--       6.. move id, trash JSON of what is left …
-- Returns 1 when it was known
local batch = ARGV[1] == '1'
if redis.call('HDEL', batch and KEYS[2] or KEYS[1], ARGV[2]) == 0 then return 0 end
redis.call('ZREM', KEYS[3], batch and '\0' .. ARGV[2] or ARGV[2])
if ARGV[4] ~= '0' then redis.call('HINCRBY', KEYS[4], ARGV[3], '-' .. ARGV[4]) end
local t = redis.call('TIME')
local again = t[1] * 1000 + math.floor(t[2] / 1000) + tonumber(ARGV[5])
for i = 6, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  redis.call('ZADD', KEYS[3], again, ARGV[i])
end
return 1
