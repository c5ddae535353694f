-- What is known of how full each of many nodes is: one trip, and one text to read.
-- KEYS  1 usage  2 capacity  3 awaiting  4.. reserved of each node
-- ARGV  1.. node id of each
-- Returns a line for each node, "<used> <capacity> <awaiting> <reserved>"; used and capacity are -1 where nobody knows them
local function figures(key, absent)
  local found = {}
  for i = 1, #ARGV, 1000 do
    local last = math.min(i + 999, #ARGV)
    for n, value in ipairs(redis.call('HMGET', key, unpack(ARGV, i, last))) do found[i + n - 1] = value or absent end
  end
  return found
end
local used, capacity, awaiting = figures(KEYS[1], '-1'), figures(KEYS[2], '-1'), figures(KEYS[3], '0')
local lines = {}
for i = 1, #ARGV do
  local sum = 0
  for _, bytes in ipairs(redis.call('HVALS', KEYS[3 + i])) do sum = sum + tonumber(bytes) end
  lines[i] = used[i] .. ' ' .. capacity[i] .. ' ' .. awaiting[i] .. ' ' .. string.format('%.0f', sum)
end
return table.concat(lines, '\n')
