-- Begin the survey of a check. What was found before stays, since a node that did not change is as it was.
-- WITH surveys
-- KEYS  1 check lock  2 survey  3 awaited nodes  4 claims  5 findings  6 rows  7 others
-- ARGV  1 token  2 JSON of what the check was asked  3 lock ttl ms  4… node ids
-- Returns 1, or 0 when the check has lost its lock
if string.match(redis.call('GET', KEYS[1]) or '', '^%d+') ~= ARGV[1] then return 0 end
if redis.call('HGET', KEYS[2], 'token') == ARGV[1] then return 1 end
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
local now = now_ms()
redis.call('HSET', KEYS[2], 'token', ARGV[1], 'asked', ARGV[2], 'begun', string.format('%.0f', now))
for i = 4, #ARGV do redis.call('SADD', KEYS[3], ARGV[i]) end
for i = 5, 7 do
  for _, node in ipairs(redis.call('HKEYS', KEYS[i])) do
    if redis.call('SISMEMBER', KEYS[3], node) == 0 then redis.call('HDEL', KEYS[i], node) end
  end
  redis.call('PERSIST', KEYS[i])
end
comes_on(KEYS[1], KEYS[2], now, ARGV[3])
return 1
