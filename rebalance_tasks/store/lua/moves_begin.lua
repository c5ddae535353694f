-- Before the first byte of a batch: reserve room on the target, book its bytes on the budgets, journal the attempts.
-- KEYS  1 job  2 group  3 journal  4 reserved on the target  5 usage  6 spend of the day
-- ARGV  1 epoch  2 "<job>/<group>"  3 target node  4 bytes to reserve  5 most bytes the target may hold (-1: unknown)
--       6 cost (nano)  7 egress limit of the job (-1)  8 cost limit of the job (nano, -1)  9 cost limit of the day (nano, -1)
--       10 bytes to book as egress  11.. move index, journal JSON …
-- Returns ok | stale | full | budget_egress | budget_cost | budget_cost_day
if redis.call('HGET', KEYS[2], 'epoch') ~= ARGV[1] then return 'stale' end
local bytes, limit, cost, egress = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[10])
if limit >= 0 then
  local held = tonumber(redis.call('HGET', KEYS[5], ARGV[3]) or '0')
  local reserved = redis.call('HGETALL', KEYS[4])
  for i = 1, #reserved, 2 do
    if reserved[i] ~= ARGV[2] then held = held + tonumber(reserved[i + 1]) end
  end
  if held + bytes > limit then return 'full' end
end
local spent = redis.call('HMGET', KEYS[1], 'egress_bytes', 'cost_nano')
if tonumber(ARGV[7]) >= 0 and tonumber(spent[1] or 0) + egress > tonumber(ARGV[7]) then return 'budget_egress' end
if tonumber(ARGV[8]) >= 0 and tonumber(spent[2] or 0) + cost > tonumber(ARGV[8]) then return 'budget_cost' end
if tonumber(ARGV[9]) >= 0 then
  if tonumber(redis.call('HGET', KEYS[6], 'cost_nano') or 0) + cost > tonumber(ARGV[9]) then return 'budget_cost_day' end
end
redis.call('HINCRBY', KEYS[1], 'egress_bytes', ARGV[10])
redis.call('HINCRBY', KEYS[6], 'egress_bytes', ARGV[10])
if cost > 0 then
  redis.call('HINCRBY', KEYS[1], 'cost_nano', ARGV[6])
  redis.call('HINCRBY', KEYS[6], 'cost_nano', ARGV[6])
end
redis.call('EXPIRE', KEYS[6], 172800)
redis.call('HSET', KEYS[4], ARGV[2], ARGV[4])
for i = 11, #ARGV, 2 do redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1]) end
return 'ok'
