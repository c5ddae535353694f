-- A node is out of reach: hold the groups that touch it for a while, then no longer.
-- KEYS  1 held nodes  2 outages  3 events
-- ARGV  1 node id  2 ms for which an outage is waited for  3 ms without a sign of it after which an outage is over
-- Returns held (its groups wait) | over (it has been out of reach for too long: its moves are to fail)
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local mark = 'missing/' .. ARGV[1]
local since, last = string.match(redis.call('HGET', KEYS[2], ARGV[1]) or '', '^(%d+) (%d+)$')
since, last = tonumber(since), tonumber(last)
-- A hold is a sign of it; what lies ahead is left from before the server's clock was set back.
if since and (since > now or (now - last > tonumber(ARGV[3]) and redis.call('HEXISTS', KEYS[1], mark) == 0)) then since = nil end
since = since or now
redis.call('HSET', KEYS[2], ARGV[1], string.format('%.0f %.0f', since, now))
if now - since >= tonumber(ARGV[2]) then
  redis.call('HDEL', KEYS[1], mark)
  return 'over'
end
if redis.call('HSETNX', KEYS[1], mark, now) == 1 then
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', 10000, '*', 'kind', 'node.held', 'by', 'runner', 'data', cjson.encode({ node = ARGV[1] }))
end
return 'held'
