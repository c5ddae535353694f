-- Journal the progress of moves in flight.
-- KEYS  1 lease  2 journal
-- ARGV  1 epoch  2.. move index, journal JSON …
-- Returns ok | stale
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 'stale' end
-- A thousand words at a time: Lua's stack holds 8,000.
for i = 2, #ARGV, 1000 do redis.call('HSET', KEYS[2], unpack(ARGV, i, math.min(i + 999, #ARGV))) end
return 'ok'
