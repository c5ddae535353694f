-- Decide whether a group's header must be published again: nobody holds a lease in it, and nobody did so just now.
-- KEYS  1 job  2 group  3 permits  4 job's pause reasons  5 fleet's pause reasons
-- ARGV  1 "<job>/<group>"  2 ms until it may be published once more  3 most ms until then, where it was published again and again
--       4.. data queues on which messages wait: the header is likely to be among them
-- Returns publish | finish (terminal, but its permit is still out or it is not counted) | leave
local g = redis.call('HMGET', KEYS[2], 'status', 'open', 'redrive_at', 'counted', 'queue', 'redrives')
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
local died = false
for n in string.gmatch(g[2] or '', '%d+') do
  local till = redis.call('HGET', KEYS[2] .. ':l:' .. n, 'lease_until') or '0'
  if ahead(till) then return 'leave' end
  if till ~= '0' then died = true end
end
local waits = false
for i = 4, #ARGV do waits = waits or ARGV[i] == g[5] end
local step, due = tonumber(ARGV[2]), tonumber(g[3] or '0')
if waits and due == 0 and not died then
  -- Who gave its last stretch back has published the header a moment ago.
  redis.call('HSET', KEYS[2], 'redrive_at', now + step)
  return 'leave'
end
if waits and due ~= 0 then
  local gone_by = now - due + step
  if gone_by >= 0 and gone_by < math.min(step * 2 ^ tonumber(g[6] or '0'), tonumber(ARGV[3])) then return 'leave' end
end
redis.call('HSET', KEYS[2], 'redrive_at', now + step)
redis.call('HINCRBY', KEYS[2], 'redrives', 1)
return 'publish'
