-- Become the one check of a fleet; the token fences the plan it writes.
-- KEYS  1 check lock  2 fence counter
-- ARGV  1 lock ttl ms  2 who asks, a name of this very call: asked again (the answer was lost) it gets the same token
-- Returns the token, or 0 when another check runs
local held = redis.call('GET', KEYS[1])
if held then
  local token, owner = string.match(held, '^(%d+) (.*)$')
  return owner == ARGV[2] and tonumber(token) or 0
end
local token = redis.call('INCR', KEYS[2])
redis.call('SET', KEYS[1], string.format('%.0f %s', token, ARGV[2]), 'PX', ARGV[1])
return token
