-- Writers through the fleet. While one holds a key's claim, and after it wrote while anything moved, no flip takes that key.
-- Whether the key must stay where it is; a claim that is over is taken away, so that its holder finds out.
-- committed   the node to which the host's catalogue has sent readers: what was written there is no reason to stay
local function stays(claims, written, key, now, committed)
  local mark = redis.call('HGET', written, key)
  if mark then return mark ~= committed end
  local claim = redis.call('HGET', claims, key)
  if not claim then return false end
  if tonumber(string.match(claim, '|(%d+)$')) > now then return true end
  redis.call('HDEL', claims, key)
  return false
end
-- Whether any copy may stand where it does not belong: keys are those of active, frees, frees:batches and undos.
local function moving(active, frees, batches, undos)
  return redis.call('EXISTS', active, frees, batches, undos) > 0
end
