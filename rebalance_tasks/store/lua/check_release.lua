-- End a check, if it is still the one check.
-- KEYS  1 check lock
-- ARGV  1 token
-- Returns 1 when released
if string.match(redis.call('GET', KEYS[1]) or '', '^%d+') == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
