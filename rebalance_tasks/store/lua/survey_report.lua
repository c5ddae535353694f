-- Hand in what was found on a node, once.
-- WITH surveys
-- KEYS  1 check lock  2 survey  3 awaited nodes  4 claims  5 findings  6 rows  7 others
-- ARGV  1 token  2 node id  3 finding (JSON)  4 lock ttl ms  5 '1': rows and others are as they were
--       6 rows (Arrow)  7 hashes of the keys that are no rows
-- Returns how many nodes are awaited still, or -1 when nobody waits for this one
if not running(KEYS[1], KEYS[2], ARGV[1]) then return -1 end
if redis.call('SREM', KEYS[3], ARGV[2]) == 0 then return -1 end
redis.call('HSET', KEYS[5], ARGV[2], ARGV[3])
if ARGV[5] ~= '1' then
  for i = 6, 7 do
    if ARGV[i] == '' then redis.call('HDEL', KEYS[i], ARGV[2]) else redis.call('HSET', KEYS[i], ARGV[2], ARGV[i]) end
  end
end
return handed_in(KEYS[1], KEYS[2], KEYS[3], KEYS[4], ARGV[2], ARGV[4])
