-- Become the one runner of a stretch of a group's moves: a lease with a new epoch, which fences every later write.
-- KEYS  1 job  2 group (a stretch's lease is <group>:l:<n>)  3 job's pause reasons  4 fleet's pause reasons  5 permits
--       6 groups  7 states  8 moves  9 journal  10 queue  11 fleet info  12 waiting  13 held nodes  14 held groups
-- ARGV  1 "<job>/<group>"  2 owner  3 lease ms  4 group id  5 limit of the gate  6 1 = called by an extra slice
--       7 ms within which an extra slice's message should have been picked up  8 form of jobs that the caller knows
-- Returns {code, epoch, now ms}; code: ok | cancel (run only to wind up) | terminal | gone | waiting | busy | paused
--         | newer (a newer release's job: its workers carry it)
--         | held (one of its nodes is: the permit was given back).
--         With ok and cancel also all that the slice needs, so that it costs one round trip:
--         {…, group JSON, capacities JSON, stretch number, its first index, states of its moves, its packed keys,
--          {index, journal JSON, …}, {journal of a batch begun under an earlier lease, …}, 1 = publish an extra slice: stretches are left and no message says so,
--          1 = more groups may be let through the gate, now that this one's message is off its queue}
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
if ARGV[6] == '1' then redis.call('HDEL', KEYS[2], 'extra_until') end
local status = redis.call('HGET', KEYS[1], 'status')
if not status or status == 'completed' or status == 'failed' or status == 'cancelled' then return {'gone', 0, now} end
if (tonumber(redis.call('HGET', KEYS[1], 'version') or '1') or math.huge) > tonumber(ARGV[8]) then return {'newer', 0, now} end
local g = redis.call('HMGET', KEYS[2], 'status', 'open', 'next', 'stretches', 'extra_until')
if not g[1] then return {'gone', 0, now} end
if g[1] == 'completed' or g[1] == 'failed' or g[1] == 'cancelled' then return {'terminal', 0, now} end
local cancelled = redis.call('HGET', KEYS[1], 'cancel_requested') == '1'
-- Winding up moves nothing, so it needs no permit: a group that was put back to wait has none.
if not cancelled and redis.call('HEXISTS', KEYS[5], ARGV[1]) == 0 then return {'waiting', 0, now} end

-- What is free: a stretch whose lease was given back or ran out before one that nobody has begun.
local taken, live = nil, 0
for n in string.gmatch(g[2] or '', '%d+') do
  local l = redis.call('HMGET', KEYS[2] .. ':l:' .. n, 'lease_until', 'owner')
  local rest = tonumber(l[1] or '0') - now
  -- No lease ends later than this one would: the server's clock was set back, and who held it may be dead.
  if rest > 0 and rest <= tonumber(ARGV[3]) and l[2] ~= ARGV[2] then
    live = live + 1
  else
    taken = taken or n
  end
end
local next, stretches = tonumber(g[3]), tonumber(g[4])
if not taken and next >= stretches then return {'busy', 0, now} end

local code = 'ok'
local permits = redis.call('HLEN', KEYS[5])
local limit = tonumber(redis.call('HGET', KEYS[11], 'max_concurrent_migrations') or ARGV[5])
-- The permit goes to others, and the group to where it waits, as soon as none of its stretches is being worked on.
local function wait_in(key, status)
  if live > 0 then return {'busy', 0, now} end
  redis.call('HDEL', KEYS[5], ARGV[1])
  redis.call('HDEL', KEYS[12], ARGV[4])
  redis.call('ZADD', key, redis.call('HGET', KEYS[2], 'score'), ARGV[4])
  redis.call('HSET', KEYS[2], 'status', status)
  return nil
end
local function held_by_node()
  if redis.call('EXISTS', KEYS[13]) == 0 then return false end
  local n = redis.call('HMGET', KEYS[2], 'source', 'target')
  local source, target = n[1] or '', n[2] or ''
  local marks = redis.call('HMGET', KEYS[13], 'operator/' .. source, 'missing/' .. source, 'operator/' .. target, 'missing/' .. target)
  return marks[1] or marks[2] or marks[3] or marks[4]
end
if cancelled then
  code = 'cancel'
elseif redis.call('SCARD', KEYS[3]) > 0 or redis.call('SCARD', KEYS[4]) > 0 then
  redis.call('HSET', KEYS[2], 'status', 'paused', 'redrive_at', 0)
  return {'paused', 0, now}
elseif held_by_node() then
  return wait_in(KEYS[14], 'paused') or {'held', 0, now}
elseif permits > limit then
  -- The limit was lowered.
  return wait_in(KEYS[10], 'pending') or {'waiting', 0, now}
end

if not taken then
  taken = tostring(next)
  next = redis.call('HINCRBY', KEYS[2], 'next', 1)
  redis.call('HSET', KEYS[2], 'open', (g[2] or '') .. ' ' .. taken)
end
local epoch = redis.call('HINCRBY', KEYS[2], 'epoch', 1)
-- From here on the lease says whether somebody works on the group, not when its message was sent.
redis.call('HSET', KEYS[2], 'status', 'running', 'redrive_at', 0)
redis.call('HDEL', KEYS[2], 'redrives')
redis.call('HSET', KEYS[2] .. ':l:' .. taken, 'epoch', epoch, 'owner', ARGV[2], 'lease_until', now + tonumber(ARGV[3]))
local picked_up = redis.call('HDEL', KEYS[12], ARGV[4]) == 1
local room = code == 'ok' and picked_up and permits < limit and redis.call('EXISTS', KEYS[10]) == 1 and 1 or 0
local more = 0
local wait = tonumber(g[5] or '0') - now
if code == 'ok' and next < stretches and (wait <= 0 or wait > tonumber(ARGV[7])) then
  redis.call('HSET', KEYS[2], 'extra_until', now + tonumber(ARGV[7]))
  more = 1
end
local first, size, keys = string.match(redis.call('HGET', KEYS[8], ARGV[4] .. ':' .. taken), '^(%d+) (%d+)\n(.*)$')
local journal = {}
for from = first, first + size - 1, 500 do
  local indexes = {}
  for index = from, math.min(from + 499, first + size - 1) do indexes[#indexes + 1] = string.format('%d', index) end
  for i, entry in ipairs(redis.call('HMGET', KEYS[9], unpack(indexes))) do
    if entry then
      journal[#journal + 1] = indexes[i]
      journal[#journal + 1] = entry
    end
  end
end
local batches = {}
local lease = redis.call('HGETALL', KEYS[2] .. ':l:' .. taken)
for i = 1, #lease, 2 do
  if string.sub(lease[i], 1, 2) == 'j:' then batches[#batches + 1] = lease[i + 1] end
end
return {
  code, epoch, now, redis.call('HGET', KEYS[6], ARGV[4]), redis.call('HGET', KEYS[1], 'capacities') or '{}',
  tonumber(taken), tonumber(first), redis.call('GETRANGE', KEYS[7], first, first + size - 1), keys, journal, batches, more, room,
}
