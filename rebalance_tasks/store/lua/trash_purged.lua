-- Forget trash that is gone from its node.
-- KEYS  1 trash  2 trash due  3 awaiting
-- ARGV  1 node  2 bytes  3 move id
-- Returns 1 when it was known
if redis.call('HDEL', KEYS[1], ARGV[3]) == 0 then return 0 end
redis.call('ZREM', KEYS[2], ARGV[3])
if ARGV[2] ~= '0' then redis.call('HINCRBY', KEYS[3], ARGV[1], '-' .. ARGV[2]) end
return 1
