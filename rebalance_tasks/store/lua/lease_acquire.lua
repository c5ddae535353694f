-- Become the one runner of a group: a lease with a new epoch, which fences every later write.
-- KEYS  1 job  2 group  3 job's pause reasons  4 fleet's pause reasons  5 permits
-- ARGV  1 "<job>/<group>"  2 owner  3 lease ms
-- Returns {code, epoch, now ms}; code: ok | cancel (run only to wind up) | terminal | gone | waiting | busy | paused
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
return {code, epoch, now}
