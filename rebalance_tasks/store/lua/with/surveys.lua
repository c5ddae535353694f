-- The survey of a check, carried out by tasks.
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
-- Whether this is the survey of a check that still holds its lock.
local function running(lock, survey, token)
  return redis.call('HGET', survey, 'token') == token and string.match(redis.call('GET', lock) or '', '^%d+') == token
end
-- Note that it comes on, so that the sweep lets it be and the lock stays.
local function comes_on(lock, survey, now, ttl_ms)
  redis.call('HSET', survey, 'moved', string.format('%.0f', now))
  redis.call('PEXPIRE', lock, ttl_ms)
end
-- Somebody is done with what he claimed, or cuts it into parts. Returns how many are awaited still.
local function handed_in(lock, survey, awaited, claims, name, ttl_ms)
  redis.call('HDEL', claims, name)
  comes_on(lock, survey, now_ms(), ttl_ms)
  return redis.call('SCARD', awaited)
end
