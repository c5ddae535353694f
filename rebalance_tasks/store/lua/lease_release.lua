-- End a lease (if its stretch is not done already) and say what the slice does next. A runner that parks for a pause
-- learns here if the pause was lifted meanwhile (no wake-up is lost).
-- KEYS  1 job  2 group  3 lease  4 job's pause reasons  5 fleet's pause reasons  6 held nodes  7 held groups  8 permits
-- ARGV  1 epoch  2 1 = called by an extra slice  3 ms within which an extra slice's message should have been picked up
--       4 "<job>/<group>"  5 group id  6 lease ms
-- Returns stale | parked | held (by a node; the last one to leave has given the permit back) | again (work is left: publish the message) | left (work is left, a message is out) | done
local epoch = redis.call('HGET', KEYS[3], 'epoch')
if epoch then
  if epoch ~= ARGV[1] then return 'stale' end
  redis.call('HSET', KEYS[3], 'lease_until', 0, 'owner', '')
end
local g = redis.call('HMGET', KEYS[2], 'status', 'extra_until')
local status = g[1]
if not status or status == 'completed' or status == 'failed' or status == 'cancelled' then return 'done' end
local paused = redis.call('SCARD', KEYS[4]) > 0 or redis.call('SCARD', KEYS[5]) > 0
local cancelled = redis.call('HGET', KEYS[1], 'cancel_requested') == '1'
if paused and not cancelled then
  redis.call('HSET', KEYS[2], 'status', 'paused')
  return 'parked'
end
if not cancelled and redis.call('EXISTS', KEYS[6]) == 1 then
  local n = redis.call('HMGET', KEYS[2], 'source', 'target', 'open', 'score')
  local source, target = n[1] or '', n[2] or ''
  local marks = redis.call('HMGET', KEYS[6], 'operator/' .. source, 'missing/' .. source, 'operator/' .. target, 'missing/' .. target)
  if marks[1] or marks[2] or marks[3] or marks[4] then
    local t = redis.call('TIME')
    local now = t[1] * 1000 + math.floor(t[2] / 1000)
    for other in string.gmatch(n[3] or '', '%d+') do
      local rest = tonumber(redis.call('HGET', KEYS[2] .. ':l:' .. other, 'lease_until') or '0') - now
      if rest > 0 and rest <= tonumber(ARGV[6]) then return 'held' end
    end
    redis.call('HSET', KEYS[2], 'status', 'paused')
    if redis.call('HDEL', KEYS[8], ARGV[4]) == 1 then redis.call('ZADD', KEYS[7], n[4], ARGV[5]) end
    return 'held'
  end
end
if ARGV[2] == '1' then
  local t = redis.call('TIME')
  local now = t[1] * 1000 + math.floor(t[2] / 1000)
  local wait = tonumber(g[2] or '0') - now
  if wait > 0 and wait <= tonumber(ARGV[3]) then return 'left' end
  redis.call('HSET', KEYS[2], 'extra_until', now + tonumber(ARGV[3]))
end
return 'again'
