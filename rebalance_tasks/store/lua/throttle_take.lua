-- A byte bucket, empty at first (each slice brings one lease's worth along): take up to what was asked for, or learn how long to wait.
-- KEYS  1 bucket
-- ARGV  1 rate (bytes/s)  2 bytes wanted  3 burst (bytes)
-- Returns {bytes granted, ms until the rest of what was wanted is there}
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local rate, want, burst = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local b = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens, at = tonumber(b[1] or 0), tonumber(b[2] or now)
tokens = math.min(burst, tokens + math.max(0, now - at) * rate / 1000000)
local granted = math.floor(math.min(want, tokens))
local wait = math.ceil(math.max(0, math.min(want, burst) - tokens) * 1000 / rate)
redis.call('HSET', KEYS[1], 'tokens', string.format('%.3f', tokens - granted), 'at', string.format('%.0f', now))
redis.call('PEXPIRE', KEYS[1], 60000)
return {granted, wait}
