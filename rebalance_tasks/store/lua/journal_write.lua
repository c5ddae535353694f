-- Journal the progress of moves in flight.
-- KEYS  1 lease  2 journal
-- ARGV  1 epoch  2.. move index, journal JSON …
-- Returns ok | stale
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 'stale' end
for i = 2, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
return 'ok'
