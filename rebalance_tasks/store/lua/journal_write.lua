-- Journal the progress of moves in flight.
-- KEYS  1 lease  2 journal
-- ARGV  1 epoch  2 field of the lease that is a batch's journal, or ''  3 what it is to say  4.. move index, journal JSON …
-- Returns ok | stale
-- WITH words
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 'stale' end
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], ARGV[2], ARGV[3]) end
local entries = {}
for i = 4, #ARGV do entries[#entries + 1] = ARGV[i] end
all('HSET', KEYS[2], entries)
return 'ok'
