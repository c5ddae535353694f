-- The gate: grant permits to waiting groups while fewer than the limit are out, best priority first.
-- KEYS  1 job  2 queue  3 permits  4 job's pause reasons  5 fleet's pause reasons  6 groups
-- ARGV  1 job id  2 limit  3 ms within which the group's header should have been picked up
-- Returns the JSON of the admitted groups (to be published by the caller; the sweep publishes again what gets lost)
local status = redis.call('HGET', KEYS[1], 'status')
if not status or status == 'completed' or status == 'failed' or status == 'cancelled' then return {} end
if redis.call('HGET', KEYS[1], 'cancel_requested') == '1' then return {} end
if redis.call('SCARD', KEYS[4]) > 0 or redis.call('SCARD', KEYS[5]) > 0 then return {} end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local admitted = {}
local free = tonumber(ARGV[2]) - redis.call('HLEN', KEYS[3])
while free > 0 do
  local popped = redis.call('ZPOPMIN', KEYS[2])
  if #popped == 0 then break end
  local id = popped[1]
  local permit = redis.call('HINCRBY', KEYS[1], 'permit_seq', 1)
  redis.call('HSET', KEYS[3], ARGV[1] .. '/' .. id, permit)
  redis.call('HSET', KEYS[1] .. ':g:' .. id, 'status', 'running', 'permit', permit, 'redrive_at', now + tonumber(ARGV[3]))
  admitted[#admitted + 1] = redis.call('HGET', KEYS[6], id)
  free = free - 1
end
if #admitted > 0 then
  if status == 'pending' then redis.call('HSET', KEYS[1], 'status', 'running') end
  redis.call('HSETNX', KEYS[1], 'started_ms', now)
end
return admitted
