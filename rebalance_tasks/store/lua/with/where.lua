-- What Redis says of the place of a key.
-- keys   written, forwarding, locations, active, frees, frees:batches, undos, node states, fleet info
-- nodes  ids of all nodes
-- Returns {node where it was written while things move, node it is forwarded to, override or catalogue, 1 = things move,
--         epoch, {node id, state set at run time …}, {node ids on which it is still to be freed}}; what there is none of is false
local function where(keys, key, nodes)
  local t = redis.call('TIME')
  local now = t[1] * 1000 + math.floor(t[2] / 1000)
  local forwarded = redis.call('HGET', keys[2], key)
  if forwarded then
    local target, expires = string.match(forwarded, '^(.*)|(%d+)$')
    forwarded = target and tonumber(expires) > now and target
  end
  local moves = redis.call('EXISTS', keys[4], keys[5], keys[6], keys[7]) > 0
  local leaving = {}
  if moves and redis.call('EXISTS', keys[5]) == 1 then
    for _, node in ipairs(nodes) do
      if redis.call('HEXISTS', keys[5], node .. '\0' .. key) == 1 then leaving[#leaving + 1] = node end
    end
  end
  return {
    moves and redis.call('HGET', keys[1], key), forwarded, redis.call('HGET', keys[3], key), moves and 1 or 0,
    redis.call('HGET', keys[9], 'epoch'), redis.call('HGETALL', keys[8]), leaving,
  }
end
