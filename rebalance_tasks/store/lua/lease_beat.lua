-- Renew a lease and read the flags, in one round trip.
-- KEYS  1 job  2 lease  3 job's pause reasons  4 fleet's pause reasons  5 group  6 held nodes
-- ARGV  1 epoch  2 lease ms
-- Returns {code, now ms}; code: ok | lost | cancel | paused (also when one of the group's nodes is held)
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local l = redis.call('HMGET', KEYS[2], 'epoch', 'owner')
-- A beat that was under way while its own runner released must not take the lease again.
if l[1] ~= ARGV[1] or l[2] == '' then return {'lost', now} end
redis.call('HSET', KEYS[2], 'lease_until', now + tonumber(ARGV[2]))
if redis.call('HGET', KEYS[1], 'cancel_requested') == '1' then return {'cancel', now} end
if redis.call('SCARD', KEYS[3]) > 0 or redis.call('SCARD', KEYS[4]) > 0 then return {'paused', now} end
if redis.call('EXISTS', KEYS[6]) == 1 then
  local n = redis.call('HMGET', KEYS[5], 'source', 'target')
  local source, target = n[1] or '', n[2] or ''
  local marks = redis.call('HMGET', KEYS[6], 'operator/' .. source, 'missing/' .. source, 'operator/' .. target, 'missing/' .. target)
  if marks[1] or marks[2] or marks[3] or marks[4] then return {'paused', now} end
end
return {'ok', now}
