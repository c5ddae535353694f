-- Count moves, each once only: pending → failed or skipped, flipped → completed. The last one of its stretch ends the
-- lease, the last one of all closes the group.
-- KEYS  1 job  2 group  3 states  4 journal  5 outcomes  6 causes  7 frees  8 trash  9 trash due  10 awaiting
--       11 reserved on the target  12 lease
-- ARGV  1 epoch  2 "<job>/<group>/<stretch>"  3 source node  4 purge delay ms  5 stretch number  6 its first index
--       7 its last index  8.. move index, state (c f s), size, object key, move id, outcome JSON or '', cause or '', trash JSON or '' …
-- A completed move with the cause 'free_pending' keeps its entry in frees: cleanup frees the source later.
-- Returns {moves counted now, moves left in the group} or {-1, 0} when the lease is stale
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
-- One call for many words: a thousand at a time, since Lua's stack holds 8,000.
local function all(command, key, words)
  for i = 1, #words, 1000 do redis.call(command, key, unpack(words, i, math.min(i + 999, #words))) end
end
-- The bytes of all moves of the batch are read and written in one go.
local first, last, asked = math.huge, -1, {}
for i = 8, #ARGV, 8 do
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
local turned, journalled, freed, trash, due = {}, {}, {}, {}, {}
for i = 8, #ARGV, 8 do
  local index, state = tonumber(ARGV[i]), ARGV[i + 1]
  if state_of(index) == from[state] and not turned[index] then
    turned[index] = state
    journalled[#journalled + 1] = ARGV[i]
    counts[state] = counts[state] + 1
    if state == 'c' then
      bytes = bytes + tonumber(ARGV[i + 2])
      local free = ARGV[3] .. '\0' .. ARGV[i + 3]
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
