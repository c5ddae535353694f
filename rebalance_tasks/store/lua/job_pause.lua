-- Add a reason to pause a job.
-- KEYS  1 job  2 job's pause reasons  3 events
-- ARGV  1 job id  2 reason  3 who asks  4.. states from which a job may be paused
-- Returns {code, status}; code: paused | unknown | terminal | cancelling
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return {'unknown', ''} end
if redis.call('HGET', KEYS[1], 'cancel_requested') == '1' and status ~= 'cancelled' then return {'cancelling', status} end
if status ~= 'paused' then
  local allowed = false
  for i = 4, #ARGV do allowed = allowed or ARGV[i] == status end
  if not allowed then return {'terminal', status} end
  local t = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'status', 'paused')
  redis.call('HSETNX', KEYS[1], 'paused_since_ms', t[1] * 1000 + math.floor(t[2] / 1000))
end
if redis.call('SADD', KEYS[2], ARGV[2]) == 1 then
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', 10000, '*', 'kind', 'job.paused', 'job', ARGV[1], 'by', ARGV[3],
    'data', cjson.encode({ reason = ARGV[2] }))
end
return {'paused', 'paused'}
