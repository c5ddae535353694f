-- End a check, if it is still the one check.
-- KEYS  1 check lock
-- ARGV  1 token
-- Returns 1 when released
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
