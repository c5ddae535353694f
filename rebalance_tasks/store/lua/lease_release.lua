-- End a lease (if its stretch is not done already) and say what the slice does next. A runner that parks for a pause
-- learns here if the pause was lifted meanwhile (no wake-up is lost).
-- KEYS  1 job  2 group  3 lease  4 job's pause reasons  5 fleet's pause reasons
-- ARGV  1 epoch  2 1 = called by an extra slice  3 ms within which an extra slice's message should have been picked up
-- Returns stale | parked | again (work is left: publish the message) | left (work is left, a message is out) | done
local epoch = redis.call('HGET', KEYS[3], 'epoch')
if epoch then
  if epoch ~= ARGV[1] then return 'stale' end
  redis.call('HSET', KEYS[3], 'lease_until', 0, 'owner', '')
end
local g = redis.call('HMGET', KEYS[2], 'status', 'extra_until')
local status = g[1]
if not status or status == 'completed' or status == 'failed' or status == 'cancelled' then return 'done' end
local held = redis.call('SCARD', KEYS[4]) > 0 or redis.call('SCARD', KEYS[5]) > 0
if held and redis.call('HGET', KEYS[1], 'cancel_requested') ~= '1' then
  redis.call('HSET', KEYS[2], 'status', 'paused')
  return 'parked'
end
if ARGV[2] == '1' then
  local t = redis.call('TIME')
  local now = t[1] * 1000 + math.floor(t[2] / 1000)
  local wait = tonumber(g[2] or '0') - now
  if wait > 0 and wait <= tonumber(ARGV[3]) then return 'left' end
  redis.call('HSET', KEYS[2], 'extra_until', now + tonumber(ARGV[3]))
end
return 'again'
