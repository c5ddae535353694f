-- Keep a plan, if the check that made it is still the one check.
-- KEYS  1 plan  2 plans  3 check lock
-- ARGV  1 fencing token ('' = made by an operator, unfenced)  2 plan id  3 ttl ms  4 meta JSON  5.. chunks of moves
-- Returns ok | stale
if ARGV[1] ~= '' and string.match(redis.call('GET', KEYS[3]) or '', '^%d+') ~= ARGV[1] then return 'stale' end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'meta', ARGV[4], 'chunks', #ARGV - 4)
for i = 5, #ARGV do redis.call('HSET', KEYS[1], 'moves:' .. (i - 5), ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('ZADD', KEYS[2], now, ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - tonumber(ARGV[3]))
return 'ok'
