-- Let go of keys that were written while a job ran, of which no other copy can be left.
-- KEYS  1 written  2 active
-- ARGV  object key …
-- Returns number let go; none while a job runs, since these may be its own
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
return redis.call('HDEL', KEYS[1], unpack(ARGV))
