-- One call for many words, a thousand at a time: Lua's stack holds 8,000.
local function all(command, key, words)
  for i = 1, #words, 1000 do redis.call(command, key, unpack(words, i, math.min(i + 999, #words))) end
end
