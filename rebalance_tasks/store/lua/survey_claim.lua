-- Take a node to be looked at, or go on holding it. One runner looks at a node at a time, since a listing may take minutes.
-- WITH surveys
-- KEYS  1 check lock  2 survey  3 awaited nodes  4 claims
-- ARGV  1 token  2 node id  3 owner  4 claim ms  5 lock ttl ms
-- Returns 'go', 'lost' (another survey, or the node is done) or 'taken' (somebody else is at it)
if not running(KEYS[1], KEYS[2], ARGV[1]) then return 'lost' end
if redis.call('SISMEMBER', KEYS[3], ARGV[2]) == 0 then return 'lost' end
local now = now_ms()
local owner, held = string.match(redis.call('HGET', KEYS[4], ARGV[2]) or '', '^(%S+) (%d+)$')
if owner and owner ~= ARGV[3] and tonumber(held) > now then return 'taken' end
redis.call('HSET', KEYS[4], ARGV[2], ARGV[3] .. ' ' .. string.format('%.0f', now + ARGV[4]))
comes_on(KEYS[1], KEYS[2], now, ARGV[5])
return 'go'
