-- A node turned out to be too large for one runner: await its parts instead.
-- KEYS  1 check lock  2 survey  3 awaited nodes  4 claims  5 findings  6 rows  7 others
-- ARGV  1 token  2 node id  3 lock ttl ms  4… names of the parts
-- Returns how many are awaited then, or -1 when nobody waits for this node
if redis.call('HGET', KEYS[2], 'token') ~= ARGV[1] then return -1 end
if string.match(redis.call('GET', KEYS[1]) or '', '^%d+') ~= ARGV[1] then return -1 end
if redis.call('SREM', KEYS[3], ARGV[2]) == 0 then return -1 end
for i = 4, #ARGV do redis.call('SADD', KEYS[3], ARGV[i]) end
-- What an earlier survey found on the whole node is not to be counted beside its parts.
for i = 4, 7 do redis.call('HDEL', KEYS[i], ARGV[2]) end
local now = redis.call('TIME')
redis.call('HSET', KEYS[2], 'moved', string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000)))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return redis.call('SCARD', KEYS[3])
