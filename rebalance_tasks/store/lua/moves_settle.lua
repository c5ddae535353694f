-- Count moves, each once only: pending → failed or skipped, flipped → completed. The last one of its stretch ends the
-- lease, the last one of all closes the group.
-- WITH words
-- WITH batches
-- KEYS  1 job  2 group  3 states  4 journal  5 outcomes  6 causes  7 frees  8 trash  9 trash due  10 awaiting
--       11 reserved on the target  12 lease  13 moves  14 batches to be freed  15 batches in the trash
-- ARGV  1 epoch  2 "<job>/<group>/<stretch>"  3 source node  4 purge delay ms  5 stretch number  6 its first index
--       7 its last index
--       8 ranges of moves that were freed into the trash ('' for none), all of one batch  9 their bytes
--       10 their fingerprints in the trash, as JSON  11.. the other moves, each: move index, state (c f s), size, object key, move id, outcome JSON or '', cause or '', trash JSON or '' …
-- A completed move with the cause 'free_pending' keeps its entry in frees: cleanup frees the source later.
-- Returns {moves counted now, moves left in the group}, {-1, 0} when the lease is stale, or {-2, 0} when one of the ranges is not
-- flipped or not in the batch's record: then nothing was written, and each must be settled by itself
local function done() return not string.find(redis.call('GETRANGE', KEYS[3], ARGV[6], ARGV[7]), '[pl]') end
local epoch = redis.call('HGET', KEYS[12], 'epoch')
if epoch ~= ARGV[1] then
  -- Asked again because the answer was lost: this very call has ended the stretch before.
  if not epoch and done() then return {0, tonumber(redis.call('HGET', KEYS[2], 'left') or '0')} end
  return {-1, 0}
end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local names = { c = 'completed', f = 'failed', s = 'skipped' }
local from = { c = 'l', f = 'p', s = 'p' }
local counts, bytes, awaiting = { c = 0, f = 0, s = 0 }, 0, 0
-- What a batch has in common: one turn of its bytes, one record in the trash.
local together = ARGV[8]
if together ~= '' then
  local indices = {}
  for from, to in spans(together) do
    for index = tonumber(from), tonumber(to) do indices[index] = true end
  end
  if not all_are(KEYS[3], together, 'l') or not holds_all(KEYS[14], ARGV[2], indices) then return {-2, 0} end
  if redis.call('HEXISTS', KEYS[15], ARGV[2]) == 1 or not keep_batch(KEYS[15], ARGV[2], KEYS[13], ARGV[3], together, ARGV[10]) then
    return {-2, 0}
  end
  redis.call('ZADD', KEYS[9], now + tonumber(ARGV[4]), '\0' .. ARGV[2])
  turn(KEYS[3], together, 'c')
  take_out(KEYS[14], ARGV[2], indices)
  if redis.call('EXISTS', KEYS[4]) == 1 then
    local journalled = {}
    for index in pairs(indices) do journalled[#journalled + 1] = string.format('%d', index) end
    all('HDEL', KEYS[4], journalled)
  end
  counts.c, bytes, awaiting = number_of(together), tonumber(ARGV[9]), tonumber(ARGV[9])
end
-- The bytes of the other moves are read and written in one go.
local first, last, asked = math.huge, -1, {}
for i = 11, #ARGV, 8 do
  local index = tonumber(ARGV[i])
  first, last = math.min(first, index), math.max(last, index)
  if ARGV[i + 1] == 'c' and ARGV[i + 6] ~= 'free_pending' then asked[#asked + 1] = ARGV[3] .. '\0' .. ARGV[i + 3] end
end
local pending = {}
for i = 1, #asked, 1000 do
  local found = redis.call('HMGET', KEYS[7], unpack(asked, i, math.min(i + 999, #asked)))
  for n = 1, #found do pending[asked[i + n - 1]] = found[n] end
end
local states = last < 0 and '' or redis.call('GETRANGE', KEYS[3], first, last)
local function state_of(index) return string.sub(states, index - first + 1, index - first + 1) end
local turned, journalled, freed, trash, due, done_ones, left_pending = {}, {}, {}, {}, {}, {}, {}
for i = 11, #ARGV, 8 do
  local index, state = tonumber(ARGV[i]), ARGV[i + 1]
  if state_of(index) == from[state] and not turned[index] then
    turned[index] = state
    journalled[#journalled + 1] = ARGV[i]
    counts[state] = counts[state] + 1
    if state == 'c' then
      bytes = bytes + tonumber(ARGV[i + 2])
      local free = ARGV[3] .. '\0' .. ARGV[i + 3]
      done_ones[index] = true
      if ARGV[i + 6] == 'free_pending' then left_pending[index] = { free, ARGV[i + 4] } end
      if ARGV[i + 6] ~= 'free_pending' and pending[free] == ARGV[i + 4] then freed[#freed + 1] = free end
      if ARGV[i + 7] ~= '' then
        local n = #trash
        trash[n + 1], trash[n + 2] = ARGV[i + 4], ARGV[i + 7]
        due[n + 1], due[n + 2] = now + tonumber(ARGV[4]), ARGV[i + 4]
        awaiting = awaiting + tonumber(ARGV[i + 2])
      end
    else
      redis.call('HSET', KEYS[5], ARGV[i], ARGV[i + 5])
      redis.call('HINCRBY', KEYS[6], ARGV[i + 6], 1)
    end
  end
end
if #journalled > 0 then
  local text = {}
  for index = first, last do text[#text + 1] = turned[index] or state_of(index) end
  redis.call('SETRANGE', KEYS[3], first, table.concat(text))
  all('HDEL', KEYS[4], journalled)
  all('HDEL', KEYS[7], freed)
  -- What was to be freed with its batch and could not be is pending by itself from here on.
  local of_batch = take_out(KEYS[14], ARGV[2], done_ones)
  for index, free in pairs(left_pending) do
    if of_batch[index] then redis.call('HSET', KEYS[7], free[1], free[2]) end
  end
  all('HSET', KEYS[8], trash)
  all('ZADD', KEYS[9], due)
end
local counted = 0
for state, n in pairs(counts) do
  if n > 0 then
    redis.call('HINCRBY', KEYS[1], names[state], n)
    redis.call('HINCRBY', KEYS[2], names[state], n)
    counted = counted + n
  end
end
if bytes > 0 then
  redis.call('HINCRBY', KEYS[1], 'bytes_moved', string.format('%.0f', bytes))
  redis.call('HINCRBY', KEYS[2], 'bytes', string.format('%.0f', bytes))
end
if awaiting > 0 then redis.call('HINCRBY', KEYS[10], ARGV[3], string.format('%.0f', awaiting)) end
local left = redis.call('HINCRBY', KEYS[2], 'left', -counted)
if done() then
  redis.call('DEL', KEYS[12])
  redis.call('HDEL', KEYS[11], ARGV[2])
  local open = ''
  for n in string.gmatch(redis.call('HGET', KEYS[2], 'open') or '', '%d+') do
    if n ~= ARGV[5] then open = open .. ' ' .. n end
  end
  redis.call('HSET', KEYS[2], 'open', open)
end
if left == 0 then
  local g = redis.call('HMGET', KEYS[2], 'completed', 'failed', 'skipped')
  local status = 'completed'
  if redis.call('HGET', KEYS[1], 'cancel_requested') == '1' and tonumber(g[3]) > 0 then
    status = 'cancelled'
  elseif tonumber(g[1]) == 0 then
    status = 'failed'
  end
  redis.call('HSET', KEYS[2], 'status', status)
end
return {counted, left}
