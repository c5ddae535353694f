-- The commit point of a batch: from here on readers are sent to the target.
-- WITH words
-- WITH claims
-- KEYS  1 lease  2 states  3 forwarding  4 moved  5 locations  6 frees  7 usage  8 reserved on the target  9 undos
--       10 claims  11 written
-- ARGV  1 epoch  2 source node  3 target node  4 forwarding ttl ms (0: none)  5 1 = keep locations (crush, catalogue), 2 = the host has committed
--       6 "<job>/<group>/<stretch>"  7.. move index, object key, size, move id …
-- Returns {number of moves flipped now, or -1 when the lease is stale, indices of moves whose object a writer through the fleet
-- holds to its place …}. A move that is not pending is left as it is.
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return { -1 } end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local source, target, ttl = ARGV[2], ARGV[3], tonumber(ARGV[4])
local committed = ARGV[5] == '2' and target
-- The bytes of all moves of the batch are read and written in one go.
local first, last = math.huge, -1
for i = 7, #ARGV, 4 do
  local index = tonumber(ARGV[i])
  first, last = math.min(first, index), math.max(last, index)
end
if last < 0 then return { 0 } end
local states = redis.call('GETRANGE', KEYS[2], first, last)
local function state(index) return string.sub(states, index - first + 1, index - first + 1) end
local until_text = target .. '|' .. string.format('%.0f', now + ttl)
local flipped, bytes, answer = 0, 0, { 0 }
local turned, forwards, moved, locations, unfreed, frees, undone = {}, {}, {}, {}, {}, {}, {}
for i = 7, #ARGV, 4 do
  local index, key = tonumber(ARGV[i]), ARGV[i + 1]
  if state(index) == 'p' and not turned[index] and stays(KEYS[10], KEYS[11], key, now, committed) then
    answer[#answer + 1] = index
  elseif state(index) == 'p' and not turned[index] then
    turned[index] = 'l'
    local n = flipped * 2
    forwards[n + 1], forwards[n + 2] = key, until_text
    moved[n + 1], moved[n + 2] = now, key
    locations[n + 1], locations[n + 2] = key, target
    unfreed[flipped + 1] = target .. '\0' .. key
    -- An earlier runner may have given this move up when its target was out of reach; now it is made after all.
    undone[flipped + 1] = ARGV[i + 3]
    frees[n + 1], frees[n + 2] = source .. '\0' .. key, ARGV[i + 3]
    flipped = flipped + 1
    bytes = bytes + tonumber(ARGV[i + 2])
  end
end
if flipped > 0 then
  local text = {}
  for index = first, last do text[#text + 1] = turned[index] or state(index) end
  redis.call('SETRANGE', KEYS[2], first, table.concat(text))
  if ttl > 0 then all('HSET', KEYS[3], forwards) end
  all('ZADD', KEYS[4], moved)
  if ARGV[5] == '1' then all('HSET', KEYS[5], locations) end
  all('HDEL', KEYS[6], unfreed)
  all('HDEL', KEYS[9], undone)
  all('HSET', KEYS[6], frees)
end
if bytes > 0 then
  redis.call('HINCRBY', KEYS[7], target, string.format('%.0f', bytes))
  redis.call('HINCRBY', KEYS[7], source, string.format('%.0f', -bytes))
  -- What has arrived is not promised any more, or the next group would find its room taken twice.
  local promised = tonumber(redis.call('HGET', KEYS[8], ARGV[6]) or '0')
  redis.call('HSET', KEYS[8], ARGV[6], string.format('%.0f', math.max(0, promised - bytes)))
end
answer[1] = flipped
return answer
