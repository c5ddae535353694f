-- Become the one who goes on with a check whose nodes are all in.
-- WITH surveys
-- KEYS  1 check lock  2 survey  3 awaited nodes
-- ARGV  1 token  2 owner, a name of this very call: asked again (the answer was lost) it is told the same  3 hold ms  4 lock ttl ms
-- Returns 1, or 0 when nodes are awaited, somebody else is at it, or the survey is over
if not running(KEYS[1], KEYS[2], ARGV[1]) then return 0 end
if redis.call('SCARD', KEYS[3]) > 0 then return 0 end
local now = now_ms()
local owner, held = string.match(redis.call('HGET', KEYS[2], 'concluding') or '', '^(%S+) (%d+)$')
if owner and owner ~= ARGV[2] and tonumber(held) > now then return 0 end
redis.call('HSET', KEYS[2], 'concluding', ARGV[2] .. ' ' .. string.format('%.0f', now + ARGV[3]))
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
