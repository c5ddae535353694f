-- Moves of a batch by their indices, as ranges in text ("0-4,7-7"), and the record that is kept of a batch:
-- "<form> <node> <ranges>\n<rows>\n<first index of the stretch> <its moves>\n<its packed keys>".
local function spans(ranges) return string.gmatch(ranges, '(%d+)%-(%d+)') end
local function number_of(ranges)
  local n = 0
  for from, to in spans(ranges) do n = n + to - from + 1 end
  return n
end
local function all_are(states, ranges, state)
  for from, to in spans(ranges) do
    local found = redis.call('GETRANGE', states, from, to)
    if #found ~= to - from + 1 or string.find(found, '[^' .. state .. ']') then return false end
  end
  return true
end
local function turn(states, ranges, state)
  for from, to in spans(ranges) do redis.call('SETRANGE', states, from, string.rep(state, to - from + 1)) end
end
-- Keep a record of a batch of the stretch "<job>/<group>/<stretch>"; false when the stretch's keys are not there.
local function keep_batch(batches, name, moves, node, ranges, rows)
  local group, stretch = string.match(name, '/([^/]+)/([^/]+)$')
  local keys = redis.call('HGET', moves, group .. ':' .. stretch)
  if not keys then return false end
  redis.call('HSET', batches, name, '1 ' .. node .. ' ' .. ranges .. '\n' .. rows .. '\n' .. keys)
  return true
end
-- Whether a batch's record holds all moves of a set of indices.
local function holds_all(batches, name, wanted)
  local record = redis.call('HGET', batches, name)
  if not record then return false end
  local held = {}
  for from, to in spans(string.match(record, '^%S+ %S+ (%S+)\n')) do
    for index = tonumber(from), tonumber(to) do held[index] = true end
  end
  for index in pairs(wanted) do
    if not held[index] then return false end
  end
  return true
end
-- Take moves (a set of indices) out of a batch's record, which is forgotten when none is left.
-- Returns the set of those that were in it, and whether it is forgotten.
local function take_out(batches, name, gone)
  local out, rest = {}, {}
  local record = redis.call('HGET', batches, name)
  if not record then return out, false end
  local head, ranges, body = string.match(record, '^(%S+ %S+ )(%S+)(\n.*)$')
  local from, last
  local function close() if from then rest[#rest + 1] = string.format('%d-%d', from, last) end end
  for a, b in spans(ranges) do
    for index = tonumber(a), tonumber(b) do
      if gone[index] then
        out[index] = true
      elseif last and index == last + 1 then
        last = index
      else
        close()
        from, last = index, index
      end
    end
  end
  close()
  if #rest == 0 then
    redis.call('HDEL', batches, name)
    return out, true
  end
  if next(out) then redis.call('HSET', batches, name, head .. table.concat(rest, ',') .. body) end
  return out, false
end
