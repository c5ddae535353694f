-- Count a job's open groups, and those of them that touch a held node.
-- KEYS  1 job  2 groups  3 held nodes
-- Returns {} when no node is held, else {open groups, held ones, node id, its held groups, …}
if redis.call('EXISTS', KEYS[3]) == 0 then return {} end
local marked = {}
for _, mark in ipairs(redis.call('HKEYS', KEYS[3])) do marked[string.match(mark, '^%a+/(.*)$') or ''] = true end
local open, held, by_node = 0, 0, {}
for _, id in ipairs(redis.call('HKEYS', KEYS[2])) do
  local g = redis.call('HMGET', KEYS[1] .. ':g:' .. id, 'status', 'source', 'target')
  if g[1] and g[1] ~= 'completed' and g[1] ~= 'failed' and g[1] ~= 'cancelled' then
    open = open + 1
    if marked[g[2]] or marked[g[3]] then held = held + 1 end
    for _, node in ipairs({g[2], g[3]}) do
      if marked[node] then by_node[node] = (by_node[node] or 0) + 1 end
    end
  end
end
local answer = {open, held}
for node, n in pairs(by_node) do
  answer[#answer + 1] = node
  answer[#answer + 1] = n
end
return answer
