-- Let each source of a batch be pending by itself: its job is over, and no runner will settle the batch as a whole.
-- KEYS  1 batches to be freed  2 frees
-- ARGV  1 "<job>/<group>/<stretch>"  2 the record as it was read  3.. "<node>\0<object key>", move id …
-- Returns 1, or 0 when the record is another one by now
-- WITH words
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
local frees = {}
for i = 3, #ARGV do frees[#frees + 1] = ARGV[i] end
all('HSET', KEYS[2], frees)
redis.call('HDEL', KEYS[1], ARGV[1])
return 1
