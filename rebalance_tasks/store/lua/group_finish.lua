-- Become the one check of a fleet; the token fences the plan it writes.
-- KEYS  1 check lock  2 fence counter
-- ARGV  1 lock ttl ms
-- Returns the token, or 0 when another check runs
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local token = redis.call('INCR', KEYS[2])
redis.call('SET', KEYS[1], token, 'PX', ARGV[1])
return token
