-- What Redis says of the place of a key.
-- keys   written, forwarding, locations, active, frees, frees:batches, undos, node states, fleet info
-- Returns lines, since one text is read faster than a list: node where it was written while things move, node it is forwarded to,
--         override or catalogue, 1 = things move, 1 = sources are still to be freed, epoch, then node ids with the states set at
--         run time; what there is none of is an empty line
local function where(keys, key)
  local forwarded = redis.call('HGET', keys[2], key)
  if forwarded then
    local t = redis.call('TIME')
    local target, expires = string.match(forwarded, '^(.*)|(%d+)$')
    forwarded = target and tonumber(expires) > t[1] * 1000 + math.floor(t[2] / 1000) and target
  end
  local moves = redis.call('EXISTS', keys[4], keys[5], keys[6], keys[7]) > 0
  return table.concat({
    moves and redis.call('HGET', keys[1], key) or '', forwarded or '', redis.call('HGET', keys[3], key) or '', moves and 1 or 0,
    moves and redis.call('EXISTS', keys[5]) or 0, redis.call('HGET', keys[9], 'epoch') or 0, unpack(redis.call('HGETALL', keys[8])),
  }, '\n')
end
