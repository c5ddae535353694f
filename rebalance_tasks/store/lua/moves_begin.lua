-- Before the first byte of a batch: reserve room on the target, book bytes on the budgets, journal the attempts.
-- Each move is judged for itself, in order: what no longer fits is refused, and a smaller one after it may still fit.
-- WITH words
-- KEYS  1 job  2 lease  3 journal  4 reserved on the target  5 usage  6 spend of the day
-- ARGV  1 epoch  2 "<job>/<group>/<stretch>"  3 target node  4 most bytes the target may hold (-1: unknown)
--       5 egress limit of the job (-1)  6 cost limit of the job (nano, -1)  7 cost limit of the day (nano, -1)
--       8 a name of this very call: asked again (the answer was lost) it books nothing twice
--       9 1 = one entry stands for a whole batch that was never attempted: its journal is a field of the lease
--       10.. move index (field), journal JSON, bytes to reserve, bytes to book as egress, cost to book (nano) …
-- Returns {'stale'}, or for each entry ok | target_full | budget_egress | budget_cost | budget_cost_day. Of a batch that does
-- not fit as a whole nothing is booked or journalled: its moves are to be judged each for itself.
if redis.call('HGET', KEYS[2], 'epoch') ~= ARGV[1] then return {'stale'} end
local codes = {}
if redis.call('HGET', KEYS[2], 'begun') == ARGV[8] then
  for code in string.gmatch(redis.call('HGET', KEYS[2], 'begun_codes'), '%S+') do codes[#codes + 1] = code end
  return codes
end
local room, egress_limit, cost_limit, day_limit = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local held = tonumber(redis.call('HGET', KEYS[5], ARGV[3]) or '0')
local reserved = redis.call('HGETALL', KEYS[4])
for i = 1, #reserved, 2 do
  if reserved[i] ~= ARGV[2] then held = held + tonumber(reserved[i + 1]) end
end
local spent = redis.call('HMGET', KEYS[1], 'egress_bytes', 'cost_nano')
local job_egress, job_cost = tonumber(spent[1] or 0), tonumber(spent[2] or 0)
local day_cost = tonumber(redis.call('HGET', KEYS[6], 'cost_nano') or 0)
local entries, size_sum, egress_sum, cost_sum = {}, 0, 0, 0
for i = 10, #ARGV, 5 do
  local size, egress, cost = tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3]), tonumber(ARGV[i + 4])
  local code = 'ok'
  if room >= 0 and held + size_sum + size > room then
    code = 'target_full'
  elseif egress_limit >= 0 and egress > 0 and job_egress + egress_sum + egress > egress_limit then
    code = 'budget_egress'
  elseif cost_limit >= 0 and cost > 0 and job_cost + cost_sum + cost > cost_limit then
    code = 'budget_cost'
  elseif day_limit >= 0 and cost > 0 and day_cost + cost_sum + cost > day_limit then
    code = 'budget_cost_day'
  else
    size_sum, egress_sum, cost_sum = size_sum + size, egress_sum + egress, cost_sum + cost
    entries[#entries + 1] = ARGV[i]
    entries[#entries + 1] = ARGV[i + 1]
  end
  codes[#codes + 1] = code
end
if ARGV[9] == '1' and codes[1] ~= 'ok' then return codes end
all('HSET', ARGV[9] == '1' and KEYS[2] or KEYS[3], entries)
redis.call('HSET', KEYS[2], 'begun', ARGV[8], 'begun_codes', table.concat(codes, ' '))
redis.call('HSET', KEYS[4], ARGV[2], string.format('%.0f', size_sum))
if egress_sum > 0 then
  redis.call('HINCRBY', KEYS[1], 'egress_bytes', string.format('%.0f', egress_sum))
  redis.call('HINCRBY', KEYS[6], 'egress_bytes', string.format('%.0f', egress_sum))
end
if cost_sum > 0 then
  redis.call('HINCRBY', KEYS[1], 'cost_nano', string.format('%.0f', cost_sum))
  redis.call('HINCRBY', KEYS[6], 'cost_nano', string.format('%.0f', cost_sum))
end
if egress_sum > 0 or cost_sum > 0 then redis.call('EXPIRE', KEYS[6], 172800) end
return codes
