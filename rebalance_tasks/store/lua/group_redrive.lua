-- Decide whether a group's header must be published again: nobody holds a lease in it, and nobody did so just now.
-- KEYS  1 job  2 group  3 permits  4 job's pause reasons  5 fleet's pause reasons
-- ARGV  1 "<job>/<group>"  2 ms until it may be published once more
-- Returns publish | finish (terminal, but its permit is still out or it is not counted) | leave
local g = redis.call('HMGET', KEYS[2], 'status', 'open', 'redrive_at', 'counted')
if not g[1] then return 'leave' end
if g[1] == 'completed' or g[1] == 'failed' or g[1] == 'cancelled' then
  if g[4] ~= '1' then return 'finish' end
  return 'leave'
end
local cancelled = redis.call('HGET', KEYS[1], 'cancel_requested') == '1'
-- A group that was put back to wait is wound up without a permit.
if not cancelled and redis.call('HEXISTS', KEYS[3], ARGV[1]) == 0 then return 'leave' end
local held = redis.call('SCARD', KEYS[4]) > 0 or redis.call('SCARD', KEYS[5]) > 0
if held and not cancelled then return 'leave' end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
-- Neither ends later than one set now would: what does is left from before the server's clock was set back.
local function ahead(at)
  local rest = tonumber(at or '0') - now
  return rest > 0 and rest <= tonumber(ARGV[2])
end
if ahead(g[3]) then return 'leave' end
for n in string.gmatch(g[2] or '', '%d+') do
  if ahead(redis.call('HGET', KEYS[2] .. ':l:' .. n, 'lease_until')) then return 'leave' end
end
redis.call('HSET', KEYS[2], 'redrive_at', now + tonumber(ARGV[2]))
return 'publish'
