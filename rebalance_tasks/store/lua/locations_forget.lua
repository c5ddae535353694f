-- Forget entries that lead to one node.
-- KEYS  1 forwarding or locations
-- ARGV  1 node  2.. object key …
-- Returns number forgotten
local node = ARGV[1]
local forgotten = 0
for i = 2, #ARGV do
  local entry = redis.call('HGET', KEYS[1], ARGV[i])
  if entry and (entry == node or string.match(entry, '^(.*)|%d+$') == node) then
    forgotten = forgotten + redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
return forgotten
