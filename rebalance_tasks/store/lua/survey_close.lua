-- End a survey. What was found is kept for the next one, for a time.
-- KEYS  1 survey  2 awaited nodes  3 claims  4 findings  5 rows  6 others  7 keys sought  8 keys met
--       9 cuts
-- ARGV  1 token  2 ms to keep what was found
-- Returns 1 when it was this one
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[7], KEYS[8], KEYS[9])
for i = 4, 6 do redis.call('PEXPIRE', KEYS[i], ARGV[2]) end
return 1
