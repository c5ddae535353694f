-- Bytes that are promised on each of many nodes, in one trip.
-- KEYS  1.. reserved of each node
-- Returns the sum for each, in order
local sums = {}
for i = 1, #KEYS do
  local sum = 0
  for _, bytes in ipairs(redis.call('HVALS', KEYS[i])) do sum = sum + tonumber(bytes) end
  sums[i] = string.format('%.0f', sum)
end
return sums
