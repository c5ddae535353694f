-- Ask a job to stop: a flag for the groups that run; groups that never started are counted skipped at once.
-- KEYS  1 job  2 queue  3 states  4 causes
-- ARGV  1 who asks
-- Returns {code, status, groups not yet counted}; code: requested | already | unknown | terminal
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return {'unknown', '', 0} end
if status == 'completed' or status == 'failed' or status == 'cancelled' then return {'terminal', status, 0} end
local code = redis.call('HSETNX', KEYS[1], 'cancelled_by', ARGV[1]) == 1 and 'requested' or 'already'
redis.call('HSET', KEYS[1], 'cancel_requested', 1)
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  local gkey = KEYS[1] .. ':g:' .. id
  local g = redis.call('HMGET', gkey, 'offset', 'size')
  local first, size = tonumber(g[1]), tonumber(g[2])
  local _, open = string.gsub(redis.call('GETRANGE', KEYS[3], first, first + size - 1), 'p', 'p')
  redis.call('SETRANGE', KEYS[3], first, string.rep('s', size))
  redis.call('HINCRBY', KEYS[1], 'skipped', open)
  redis.call('HINCRBY', KEYS[1], 'groups_done', 1)
  if open > 0 then redis.call('HINCRBY', KEYS[4], 'cancelled', open) end
  redis.call('HINCRBY', gkey, 'skipped', open)
  redis.call('HSET', gkey, 'status', 'cancelled', 'left', 0, 'counted', 1)
end
redis.call('DEL', KEYS[2])
local job = redis.call('HMGET', KEYS[1], 'groups_total', 'groups_done')
return {code, redis.call('HGET', KEYS[1], 'status'), tonumber(job[1]) - tonumber(job[2])}
