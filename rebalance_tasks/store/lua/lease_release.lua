-- End a lease. A runner that parks for a pause learns here if the pause was lifted meanwhile (no wake-up is lost).
-- KEYS  1 job  2 group  3 job's pause reasons  4 fleet's pause reasons
-- ARGV  1 epoch
-- Returns stale | parked | again (work is left and nothing holds it: publish the header) | done
if redis.call('HGET', KEYS[2], 'epoch') ~= ARGV[1] then return 'stale' end
redis.call('HSET', KEYS[2], 'lease_until', 0, 'owner', '')
local status = redis.call('HGET', KEYS[2], 'status')
if status == 'completed' or status == 'failed' or status == 'cancelled' then return 'done' end
local held = redis.call('SCARD', KEYS[3]) > 0 or redis.call('SCARD', KEYS[4]) > 0
if held and redis.call('HGET', KEYS[1], 'cancel_requested') ~= '1' then
  redis.call('HSET', KEYS[2], 'status', 'paused')
  return 'parked'
end
return 'again'
