-- A byte bucket that several slices share: take up to a tenth of a second's rate, or learn how long to wait.
-- It saves up a quarter of a second, so that a sync or a late wake-up costs nothing in the end, but pays that back at 5 % over
-- the rate. In any T seconds it grants at most rate * min(T + 0.25, 1.05 T + 0.1), however many ask, whatever they did before.
-- KEYS  1 bucket  2 rate set at run time (bytes/s, 0 for none; it wins over ARGV 1), optional
--       3.. paces of the node (its rates, where it is held back, are limits besides), optional
-- ARGV  1 rate (bytes/s, 0 for none)  2 bytes given back: leased, and not spent in time
-- Returns {bytes granted, ms until a whole lease is there, rate}; with rate 0 nothing is granted or needed
local rate = tonumber(KEYS[2] and redis.call('GET', KEYS[2]) or ARGV[1]) or tonumber(ARGV[1])
for i = 3, #KEYS do
  local pace = tonumber(redis.call('HGET', KEYS[i], 'rate') or 0)
  if pace > 0 and (rate <= 0 or pace < rate) then rate = pace end
end
if rate <= 0 then return {0, 0, 0} end
local lease = math.max(1, math.floor(rate / 10))
local depth = math.max(lease, rate * 0.25)
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local b = redis.call('HMGET', KEYS[1], 'saved', 'burst', 'at')
-- New, it has a lease at hand (the first object waits for nothing) and has saved nothing beyond it.
local saved, burst, at = tonumber(b[1] or lease), tonumber(b[2] or lease), tonumber(b[3] or now)
local grown = math.max(0, now - at) * rate / 1000000
saved = math.min(depth, saved + grown + tonumber(ARGV[2]))
burst = math.min(lease, burst + grown * 1.05 + tonumber(ARGV[2]))
local granted = math.floor(math.min(saved, burst))
saved, burst = saved - granted, burst - granted
local wait = math.ceil(math.max(0, lease - math.min(saved, burst)) * 1000 / rate)
local text = string.format
redis.call('HSET', KEYS[1], 'saved', text('%.3f', saved), 'burst', text('%.3f', burst), 'at', text('%.0f', now))
redis.call('PEXPIRE', KEYS[1], 60000)
return {granted, wait, rate}
