-- Claim a key for writing: from here on no flip takes it, until the claim is given back or over.
-- WITH where
-- KEYS  1-9 as locate.lua  10 claims
-- ARGV  1 object key  2 token  3 ttl ms  4 ms for which readers go by what they knew before a job began
--       5 first part of the keys of jobs
-- Returns {1, ms to wait before anything is changed, …as `where`} | {0, ms that another writer has left}
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local claim = redis.call('HGET', KEYS[10], ARGV[1])
if claim then
  local token, expires = string.match(claim, '^(.*)|(%d+)$')
  if token ~= ARGV[2] and tonumber(expires) > now then return { 0, tonumber(expires) - now } end
end
redis.call('HSET', KEYS[10], ARGV[1], ARGV[2] .. '|' .. string.format('%.0f', now + tonumber(ARGV[3])))
local job = redis.call('GET', KEYS[4])
local began = job and tonumber(redis.call('HGET', ARGV[5] .. job, 'created_ms') or '0') or 0
return { 1, math.max(0, began + tonumber(ARGV[4]) - now), where(KEYS, ARGV[1]) }
