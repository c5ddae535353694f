-- Ask places that are in a second time: which of some keys do they hold besides their candidates? What they found stands.
-- WITH surveys
-- KEYS  1 check lock  2 survey  3 awaited nodes  4 claims  5 keys sought  6 keys met
-- ARGV  1 token  2 lock ttl ms  3 hashes of the keys  4… names of the questions
-- Returns 1, or 0 when the survey is over, or was asked before
if not running(KEYS[1], KEYS[2], ARGV[1]) then return 0 end
if redis.call('HSETNX', KEYS[2], 'questions', #ARGV - 3) == 0 then return 0 end
redis.call('DEL', KEYS[4], KEYS[6])
redis.call('SET', KEYS[5], ARGV[3])
for i = 4, #ARGV do redis.call('SADD', KEYS[3], ARGV[i]) end
local now = now_ms()
-- Answers have as long as listings had, and whoever has asked does not conclude.
redis.call('HSET', KEYS[2], 'begun', string.format('%.0f', now))
redis.call('HDEL', KEYS[2], 'concluding')
comes_on(KEYS[1], KEYS[2], now, ARGV[2])
return 1
