-- Close a job whose groups are all terminal. Counts come from the bytes of the moves, never from messages.
-- KEYS  1 job  2 active  3 states  4 causes  5 permits  6 fleet info
-- ARGV  1 job id  2 imbalance after ('' = unknown)  3 error to note when nothing could be moved
-- Returns {code, status}; code: finalized | open (work is left) | already | unknown
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return {'unknown', ''} end
if status == 'completed' or status == 'failed' or status == 'cancelled' then return {'already', status} end
local states = redis.call('GET', KEYS[3]) or ''
local function count(byte)
  local _, n = string.gsub(states, byte, byte)
  return n
end
local completed, failed, skipped = count('c'), count('f'), count('s')
if completed + failed + skipped ~= #states then return {'open', status} end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local cancelled = tonumber(redis.call('HGET', KEYS[4], 'cancelled') or '0')
status = 'failed'
if redis.call('HGET', KEYS[1], 'cancel_requested') == '1' and (cancelled > 0 or completed == 0) then
  status = 'cancelled'
elseif completed > 0 or #states == 0 then
  status = 'completed'
end
local since = redis.call('HGET', KEYS[1], 'paused_since_ms')
if since then
  redis.call('HINCRBY', KEYS[1], 'paused_ms', math.max(0, now - tonumber(since)))
  redis.call('HDEL', KEYS[1], 'paused_since_ms')
end
redis.call('HSET', KEYS[1], 'status', status, 'completed_ms', now, 'completed', completed, 'failed', failed, 'skipped', skipped)
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], 'imbalance_after', ARGV[2]) end
if status == 'failed' then redis.call('HSETNX', KEYS[1], 'error', ARGV[3]) end
if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end
-- In the same step, or a crash right here would leave the gate narrower for ever.
for _, name in ipairs(redis.call('HKEYS', KEYS[5])) do
  if string.sub(name, 1, #ARGV[1] + 1) == ARGV[1] .. '/' then redis.call('HDEL', KEYS[5], name) end
end
redis.call('HINCRBY', KEYS[6], 'epoch', 1)
return {'finalized', status}
