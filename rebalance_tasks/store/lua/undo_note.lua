-- Leave it to the cleanup to take an unflipped copy off its target, while its move is not flipped.
-- KEYS  1 lease  2 states  3 undos
-- ARGV  1 epoch  2 move index  3 move id  4 record JSON
-- Returns noted | flipped (readers were sent to that very copy) | stale
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 'stale' end
local state = redis.call('GETRANGE', KEYS[2], ARGV[2], ARGV[2])
if state == 'l' or state == 'c' then return 'flipped' end
redis.call('HSET', KEYS[3], ARGV[3], ARGV[4])
return 'noted'
