-- Forget a survey that is over.
-- KEYS  1 survey  2 awaited nodes  3 claims  4 findings  5 rows  6 others
-- ARGV  1 token
-- Returns 1 when it was this one
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6])
return 1
