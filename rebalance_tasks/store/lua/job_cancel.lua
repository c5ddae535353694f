-- Ask a job to stop: a flag for the groups that run; what was never begun of those that wait is counted skipped at once.
-- KEYS  1 job  2 queue  3 states  4 causes  5 held groups  6 events
-- ARGV  1 who asks  2 job id
-- Returns {code, status, groups not yet counted, {group to be woken, …}}; code: requested | already | unknown | terminal
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return {'unknown', '', 0, {}} end
if status == 'completed' or status == 'failed' or status == 'cancelled' then return {'terminal', status, 0, {}} end
local code = redis.call('HSETNX', KEYS[1], 'cancelled_by', ARGV[1]) == 1 and 'requested' or 'already'
redis.call('HSET', KEYS[1], 'cancel_requested', 1)
if code == 'requested' then
  redis.call('XADD', KEYS[6], 'MAXLEN', '~', 10000, '*', 'kind', 'job.cancel_requested', 'job', ARGV[2], 'by', ARGV[1])
end
local woken = {}
local function wind_up(id)
  local gkey = KEYS[1] .. ':g:' .. id
  local g = redis.call('HMGET', gkey, 'offset', 'size', 'open')
  if string.find(g[3] or '', '%d') then
    -- It ran, and was put back to wait: a runner finishes what is published and undoes what is not.
    redis.call('HSET', gkey, 'status', 'running', 'redrive_at', 0)
    woken[#woken + 1] = id
    return
  end
  local first, size = tonumber(g[1]), tonumber(g[2])
  local states, open = string.gsub(redis.call('GETRANGE', KEYS[3], first, first + size - 1), 'p', 's')
  redis.call('SETRANGE', KEYS[3], first, states)
  redis.call('HINCRBY', KEYS[1], 'skipped', open)
  redis.call('HINCRBY', KEYS[1], 'groups_done', 1)
  if open > 0 then redis.call('HINCRBY', KEYS[4], 'cancelled', open) end
  redis.call('HINCRBY', gkey, 'skipped', open)
  redis.call('HSET', gkey, 'status', 'cancelled', 'left', 0, 'counted', 1)
end
for _, key in ipairs({KEYS[2], KEYS[5]}) do
  for _, id in ipairs(redis.call('ZRANGE', key, 0, -1)) do wind_up(id) end
  redis.call('DEL', key)
end
local job = redis.call('HMGET', KEYS[1], 'groups_total', 'groups_done')
return {code, redis.call('HGET', KEYS[1], 'status'), tonumber(job[1]) - tonumber(job[2]), woken}
