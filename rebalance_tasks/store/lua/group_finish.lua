-- Count a terminal group and give its permit back, once.
-- KEYS  1 job  2 group  3 permits  4 waiting
-- ARGV  1 "<job>/<group>"  2 group id
-- Returns {code, groups not yet counted, cancel requested}; code: open (not terminal) | gone | finished | already
local status = redis.call('HGET', KEYS[2], 'status')
if not status then return {'gone', 0, 0} end
local cancel = redis.call('HGET', KEYS[1], 'cancel_requested') == '1' and 1 or 0
local code = 'already'
if status ~= 'completed' and status ~= 'failed' and status ~= 'cancelled' then
  code = 'open'
elseif redis.call('HGET', KEYS[2], 'counted') ~= '1' then
  redis.call('HSET', KEYS[2], 'counted', 1)
  redis.call('HDEL', KEYS[4], ARGV[2])
  redis.call('HINCRBY', KEYS[1], 'groups_done', 1)
  if redis.call('HGET', KEYS[3], ARGV[1]) == redis.call('HGET', KEYS[2], 'permit') then
    redis.call('HDEL', KEYS[3], ARGV[1])
  end
  code = 'finished'
end
local job = redis.call('HMGET', KEYS[1], 'groups_total', 'groups_done')
return {code, tonumber(job[1] or 0) - tonumber(job[2] or 0), cancel}
