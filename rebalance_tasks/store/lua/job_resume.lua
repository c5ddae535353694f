-- Lift one reason to pause; the job goes on when none is left.
-- KEYS  1 job  2 job's pause reasons  3 fleet's pause reasons  4 events
-- ARGV  1 job id  2 reason  3 who asks
-- Returns {code, status, reasons left …}; code: resumed | held | not_paused | unknown | terminal
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return {'unknown', ''} end
if status == 'completed' or status == 'failed' or status == 'cancelled' then return {'terminal', status} end
local lifted = redis.call('SREM', KEYS[2], ARGV[2])
local left = redis.call('SUNION', KEYS[2], KEYS[3])
local function tell(kind)
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', 10000, '*', 'kind', kind, 'job', ARGV[1], 'by', ARGV[3],
    'data', cjson.encode({ reason = ARGV[2] }))
end
if #left > 0 and lifted == 1 then tell('job.pause_lifted') end
if #left > 0 then return {'held', status, unpack(left)} end
if status ~= 'paused' then return {'not_paused', status} end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local since = redis.call('HGET', KEYS[1], 'paused_since_ms')
if since then
  redis.call('HINCRBY', KEYS[1], 'paused_ms', math.max(0, now - tonumber(since)))
  redis.call('HDEL', KEYS[1], 'paused_since_ms')
end
redis.call('HSET', KEYS[1], 'status', 'running')
tell('job.resumed')
return {'resumed', 'running'}
