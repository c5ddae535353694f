-- Hand in which of the keys that were asked for lie at a place, once; or that nobody can tell.
-- WITH surveys
-- KEYS  1 check lock  2 survey  3 awaited nodes  4 claims  5 findings  6 rows  7 others  8 keys met
-- ARGV  1 token  2 name of the question  3 the place  4 lock ttl ms  5 finding that takes the place of its own (JSON), or ''  6 hashes
-- Returns how many are awaited still, or -1 when nobody waits for this answer
if not running(KEYS[1], KEYS[2], ARGV[1]) then return -1 end
if redis.call('SREM', KEYS[3], ARGV[2]) == 0 then return -1 end
if ARGV[5] == '' then
  redis.call('HSET', KEYS[8], ARGV[3], ARGV[6])
else
  redis.call('HSET', KEYS[5], ARGV[3], ARGV[5])
  redis.call('HDEL', KEYS[6], ARGV[3])
  redis.call('HDEL', KEYS[7], ARGV[3])
end
return handed_in(KEYS[1], KEYS[2], KEYS[3], KEYS[4], ARGV[2], ARGV[4])
