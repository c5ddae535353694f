-- Take waiting groups that touch a held node out of the gate's queue, and put those back whose nodes are let go.
-- KEYS  1 job  2 queue  3 held groups  4 held nodes
-- Returns {groups put aside, groups put back}
local holds = redis.call('EXISTS', KEYS[4]) == 1
local function held(id)
  if not holds then return false end
  local n = redis.call('HMGET', KEYS[1] .. ':g:' .. id, 'source', 'target')
  local source, target = n[1] or '', n[2] or ''
  local marks = redis.call('HMGET', KEYS[4], 'operator/' .. source, 'missing/' .. source, 'operator/' .. target, 'missing/' .. target)
  return marks[1] or marks[2] or marks[3] or marks[4]
end
local function shift(from, to, wanted)
  local moved = 0
  local waiting = redis.call('ZRANGE', from, 0, -1, 'WITHSCORES')
  for i = 1, #waiting, 2 do
    local gkey = KEYS[1] .. ':g:' .. waiting[i]
    if redis.call('EXISTS', gkey) == 0 then
      redis.call('ZREM', from, waiting[i])
    elseif (held(waiting[i]) and true or false) == wanted then
      redis.call('ZREM', from, waiting[i])
      redis.call('ZADD', to, waiting[i + 1], waiting[i])
      redis.call('HSET', gkey, 'status', wanted and 'paused' or 'pending')
      moved = moved + 1
    end
  end
  return moved
end
local back = redis.call('EXISTS', KEYS[3]) == 1 and shift(KEYS[3], KEYS[2], false) or 0
return {holds and shift(KEYS[2], KEYS[3], true) or 0, back}
