-- Close a job whose groups are all terminal. Counts come from the bytes of the moves, never from messages.
-- KEYS  1 job  2 active  3 states  4 causes  5 permits  6 fleet info  7 counters  8 events
-- ARGV  1 job id  2 imbalance after ('' = unknown)  3 error to note when nothing could be moved  4.. bounds of the durations' histogram, s
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
-- What a job counted while it ran goes over to the fleet's counters, in the step in which it stops being the active one.
local job = redis.call('HMGET', KEYS[1], 'bytes_moved', 'egress_bytes', 'cost_nano', 'created_ms', 'error')
local function add(name, n) if n ~= 0 then redis.call('HINCRBY', KEYS[7], name, string.format('%.0f', n)) end end
add('moves:completed', completed)
add('moves:failed', failed)
add('moves:skipped', skipped)
add('moved_bytes', tonumber(job[1] or '0'))
add('egress_bytes', tonumber(job[2] or '0'))
add('cost_nano', tonumber(job[3] or '0'))
add('jobs:' .. status, 1)
local causes = redis.call('HGETALL', KEYS[4])
for i = 1, #causes, 2 do add('cause:' .. causes[i], tonumber(causes[i + 1])) end
local took = math.max(0, now - tonumber(job[4] or now))
for i = 4, #ARGV do
  if took <= tonumber(ARGV[i]) * 1000 then
    add('job_seconds:' .. ARGV[i], 1)
    break
  end
end
add('job_ms', took)
local told = { completed = completed, failed = failed, skipped = skipped, bytes = tonumber(job[1] or '0'), error = job[5] or nil }
redis.call('XADD', KEYS[8], 'MAXLEN', '~', 10000, '*', 'kind', 'job.' .. status, 'job', ARGV[1], 'by', 'finalize',
  'data', cjson.encode(told))
return {'finalized', status}
