-- Become the one runner of a group: a lease with a new epoch, which fences every later write.
-- KEYS  1 job  2 group  3 job's pause reasons  4 fleet's pause reasons  5 permits  6 groups  7 states  8 moves  9 journal
-- ARGV  1 "<job>/<group>"  2 owner  3 lease ms  4 group id
-- Returns {code, epoch, now ms}; code: ok | cancel (run only to wind up) | terminal | gone | waiting | busy | paused.
--         With ok and cancel also all that the slice needs, so that it costs one round trip:
--         {…, group JSON, capacities JSON, states of its moves, {index, journal JSON, …}, {chunk of moves, …}}
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local status = redis.call('HGET', KEYS[1], 'status')
if not status or status == 'completed' or status == 'failed' or status == 'cancelled' then return {'gone', 0, now} end
local g = redis.call('HMGET', KEYS[2], 'status', 'lease_until', 'owner', 'left')
if not g[1] then return {'gone', 0, now} end
if g[1] == 'completed' or g[1] == 'failed' or g[1] == 'cancelled' then return {'terminal', 0, now} end
if redis.call('HEXISTS', KEYS[5], ARGV[1]) == 0 then return {'waiting', 0, now} end
if tonumber(g[2]) > now and g[3] ~= ARGV[2] then return {'busy', 0, now} end
local code = 'ok'
if redis.call('HGET', KEYS[1], 'cancel_requested') == '1' then
  code = 'cancel'
elseif redis.call('SCARD', KEYS[3]) > 0 or redis.call('SCARD', KEYS[4]) > 0 then
  redis.call('HSET', KEYS[2], 'status', 'paused')
  return {'paused', 0, now}
end
local epoch = redis.call('HINCRBY', KEYS[2], 'epoch', 1)
redis.call('HSET', KEYS[2], 'status', 'running', 'owner', ARGV[2], 'lease_until', now + tonumber(ARGV[3]))
local place = redis.call('HMGET', KEYS[2], 'offset', 'size')
local first, size = tonumber(place[1]), tonumber(place[2])
local chunks = {}
local chunk = redis.call('HGET', KEYS[8], ARGV[4] .. ':0')
while chunk do
  chunks[#chunks + 1] = chunk
  chunk = redis.call('HGET', KEYS[8], ARGV[4] .. ':' .. #chunks)
end
local journal, all = {}, redis.call('HGETALL', KEYS[9])
for i = 1, #all, 2 do
  local index = tonumber(all[i])
  if index >= first and index < first + size then
    journal[#journal + 1] = all[i]
    journal[#journal + 1] = all[i + 1]
  end
end
return {
  code, epoch, now, redis.call('HGET', KEYS[6], ARGV[4]), redis.call('HGET', KEYS[1], 'capacities') or '{}',
  redis.call('GETRANGE', KEYS[7], first, first + size - 1), journal, chunks,
}
