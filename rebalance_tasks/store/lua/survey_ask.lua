-- Ask places that are in a second time: which of some keys do they hold besides their candidates? What they found stands.
-- KEYS  1 check lock  2 survey  3 awaited nodes  4 claims  5 keys sought  6 keys met
-- ARGV  1 token  2 lock ttl ms  3 hashes of the keys  4… names of the questions
-- Returns 1, or 0 when the survey is over, or was asked before
if redis.call('HGET', KEYS[2], 'token') ~= ARGV[1] then return 0 end
if string.match(redis.call('GET', KEYS[1]) or '', '^%d+') ~= ARGV[1] then return 0 end
if redis.call('HSETNX', KEYS[2], 'questions', #ARGV - 3) == 0 then return 0 end
redis.call('DEL', KEYS[4], KEYS[6])
redis.call('SET', KEYS[5], ARGV[3])
for i = 4, #ARGV do redis.call('SADD', KEYS[3], ARGV[i]) end
local now = redis.call('TIME')
local at = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000))
-- Answers have as long as listings had, and whoever has asked does not conclude.
redis.call('HSET', KEYS[2], 'begun', at, 'moved', at)
redis.call('HDEL', KEYS[2], 'concluding')
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
