-- The commit point of a batch as a whole: as moves_flip.lua, with one record of what was moved and one of what is to be freed.
-- WITH words
-- WITH batches
-- WITH claims
-- KEYS  1 lease  2 states  3 forwarding  4 moved  5 locations  6 frees  7 usage  8 reserved on the target  9 undos
--       10 moves  11 batches moved  12 batches to be freed  13 claims  14 written
-- ARGV  1 epoch  2 source node  3 target node  4 forwarding ttl ms (0: none)  5 1 = keep locations (crush, catalogue), 2 = the host has committed
--       6 "<job>/<group>/<stretch>"  7 ranges of move indices  8 bytes of them all  9.. object key …
-- Returns number of moves flipped now, -1 when the lease is stale, or -2 when each must be looked at by itself (one is not
-- pending, a writer holds one to its place, or there is a record of another batch of this stretch): nothing was written
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return -1 end
local source, target, ttl, name, ranges = ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[6], ARGV[7]
if redis.call('HEXISTS', KEYS[11], name) == 1 or redis.call('HEXISTS', KEYS[12], name) == 1 then return -2 end
if not all_are(KEYS[2], ranges, 'p') then return -2 end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
if redis.call('EXISTS', KEYS[13], KEYS[14]) > 0 then
  for i = 9, #ARGV do
    if stays(KEYS[13], KEYS[14], ARGV[i], now, ARGV[5] == '2' and target) then return -2 end
  end
end
if not keep_batch(KEYS[12], name, KEYS[10], source, ranges, '') then return -2 end
keep_batch(KEYS[11], name, KEYS[10], target, ranges, '')
turn(KEYS[2], ranges, 'l')
redis.call('ZADD', KEYS[4], now, '\0' .. name)
local function of_each(key, value)
  local words = {}
  for i = 9, #ARGV do
    local n = #words
    words[n + 1], words[n + 2] = ARGV[i], value
  end
  all('HSET', key, words)
end
if ttl > 0 then of_each(KEYS[3], target .. '|' .. string.format('%.0f', now + ttl)) end
if ARGV[5] == '1' then of_each(KEYS[5], target) end
if redis.call('EXISTS', KEYS[6]) == 1 then
  local unfreed = {}
  for i = 9, #ARGV do unfreed[#unfreed + 1] = target .. '\0' .. ARGV[i] end
  all('HDEL', KEYS[6], unfreed)
end
if redis.call('EXISTS', KEYS[9]) == 1 then
  -- An earlier runner may have given a move up when its target was out of reach; now it is made after all.
  local job, undone = string.match(name, '^[^/]+'), {}
  for from, to in spans(ranges) do
    for index = tonumber(from), tonumber(to) do undone[#undone + 1] = string.format('%s.%d', job, index) end
  end
  all('HDEL', KEYS[9], undone)
end
redis.call('HINCRBY', KEYS[7], target, ARGV[8])
redis.call('HINCRBY', KEYS[7], source, '-' .. ARGV[8])
-- What has arrived is not promised any more, or the next group would find its room taken twice.
local promised = tonumber(redis.call('HGET', KEYS[8], name) or '0')
redis.call('HSET', KEYS[8], name, string.format('%.0f', math.max(0, promised - tonumber(ARGV[8]))))
return number_of(ranges)
