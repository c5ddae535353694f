-- A node turned out to be too large for one runner: await its parts instead.
-- WITH surveys
-- KEYS  1 check lock  2 survey  3 awaited nodes  4 claims  5 findings  6 rows  7 others
-- ARGV  1 token  2 node id  3 lock ttl ms  4… names of the parts
-- Returns how many are awaited then, or -1 when nobody waits for this node
if not running(KEYS[1], KEYS[2], ARGV[1]) then return -1 end
if redis.call('SREM', KEYS[3], ARGV[2]) == 0 then return -1 end
for i = 4, #ARGV do redis.call('SADD', KEYS[3], ARGV[i]) end
-- What an earlier survey found on the whole node is not to be counted beside its parts.
for i = 5, 7 do redis.call('HDEL', KEYS[i], ARGV[2]) end
return handed_in(KEYS[1], KEYS[2], KEYS[3], KEYS[4], ARGV[2], ARGV[3])
