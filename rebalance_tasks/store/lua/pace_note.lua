-- Note how long the calls of a node took; whoever notes when an interval is over gets all of it, once, and what is known.
-- A longer silence than five intervals says nothing of a rate: what came before it is forgotten.
-- KEYS  1 pace of a node in one direction  2 its other pace, which has to know of all bytes
-- ARGV  1 µs spent in calls  2 calls  3 bytes  4 interval (ms)  5 how long it is remembered (ms)
-- Returns {} or {ms since the last turn, µs, calls, bytes, usual ms, smoothed ms, full rate, rate}
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local p = redis.call('HMGET', KEYS[1], 'at', 'spent', 'calls', 'bytes', 'usual', 'smoothed', 'full', 'rate')
local age = now - tonumber(p[1] or 0)
redis.call('PEXPIRE', KEYS[1], ARGV[5])
if redis.call('EXISTS', KEYS[2]) == 1 then redis.call('HINCRBY', KEYS[2], 'bytes', ARGV[3]) end
if age > 5 * ARGV[4] then
  redis.call('HSET', KEYS[1], 'at', string.format('%.0f', now), 'spent', ARGV[1], 'calls', ARGV[2], 'bytes', ARGV[3])
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
  return {}
end
local spent, calls, bytes = p[2] + ARGV[1], p[3] + ARGV[2], p[4] + ARGV[3]
if age < tonumber(ARGV[4]) or calls == 0 then
  redis.call('HSET', KEYS[1], 'spent', string.format('%.0f', spent), 'calls', string.format('%.0f', calls), 'bytes', string.format('%.0f', bytes))
  return {}
end
redis.call('HSET', KEYS[1], 'at', string.format('%.0f', now), 'spent', 0, 'calls', 0, 'bytes', 0)
return {age, spent, calls, bytes, p[5] or '0', p[6] or '0', p[7] or '0', p[8] or '0'}
