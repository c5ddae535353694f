-- The gate: grant permits to waiting groups while fewer than the limit are out, best priority first.
-- KEYS  1 job  2 queue  3 permits  4 job's pause reasons  5 fleet's pause reasons  6 groups  7 fleet info  8 waiting
-- ARGV  1 job id  2 limit  3 ms within which the group's header should have been picked up
--       4 most headers of one data queue that are out and not picked up yet  5 most groups at one node (0: no limit)
--       6 the data queue of a runner that goes on with a group at once ('': nobody does)
--       7 group that must be counted, or its place is not free yet ('': none)
-- Returns {JSON of the group that the runner goes on with or '', JSON of each group to be published …}
--         (the sweep publishes again what gets lost)
local status = redis.call('HGET', KEYS[1], 'status')
if not status or status == 'completed' or status == 'failed' or status == 'cancelled' then return {''} end
if redis.call('HGET', KEYS[1], 'cancel_requested') == '1' then return {''} end
if ARGV[7] ~= '' and redis.call('HGET', KEYS[1] .. ':g:' .. ARGV[7], 'counted') ~= '1' then return {''} end
if redis.call('SCARD', KEYS[4]) > 0 or redis.call('SCARD', KEYS[5]) > 0 then return {''} end
local limit = tonumber(redis.call('HGET', KEYS[7], 'max_concurrent_migrations') or ARGV[2])
local free = limit - redis.call('HLEN', KEYS[3])
if free <= 0 or redis.call('EXISTS', KEYS[2]) == 0 then return {''} end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)

local per_node, at_node = tonumber(ARGV[5]), {}
if per_node > 0 then
  for _, permit in ipairs(redis.call('HKEYS', KEYS[3])) do
    local id = string.match(permit, '/([^/]*)$')
    for _, node in ipairs(redis.call('HMGET', KEYS[1] .. ':g:' .. id, 'source', 'target')) do
      if node then at_node[node] = (at_node[node] or 0) + 1 end
    end
  end
end
local ahead, out = tonumber(ARGV[4]), {}
for _, queue in ipairs(redis.call('HVALS', KEYS[8])) do out[queue] = (out[queue] or 0) + 1 end
local open = 0
for queue in string.gmatch(redis.call('HGET', KEYS[1], 'queues') or '', '[^\n]+') do
  if (out[queue] or 0) < ahead then open = open + 1 end
end

local taken, published = '', {}
local wanted = ARGV[6] ~= ''
-- Some hundred groups are enough: what is passed over waits for a node or a queue, and is looked at again at the next turn. Few are
-- read at a time, since mostly one is let in; whoever is leaves the queue, and those behind move up.
local function enough() return free <= 0 or (open == 0 and not wanted) end
local passed = 0
while passed < 256 and not enough() do
  local ids = redis.call('ZRANGE', KEYS[2], passed, passed + 7)
  if #ids == 0 then break end
  for _, id in ipairs(ids) do
    if enough() then break end
    local gkey = KEYS[1] .. ':g:' .. id
    local g = redis.call('HMGET', gkey, 'queue', 'source', 'target')
    local queue, source, target = g[1], g[2], g[3]
    local room = per_node == 0 or ((at_node[source] or 0) < per_node and (at_node[target] or 0) < per_node)
    local mine = taken == '' and queue == ARGV[6]
    if room and (mine or (out[queue] or 0) < ahead) then
      redis.call('ZREM', KEYS[2], id)
      local permit = redis.call('HINCRBY', KEYS[1], 'permit_seq', 1)
      redis.call('HSET', KEYS[3], ARGV[1] .. '/' .. id, permit)
      redis.call('HSET', gkey, 'status', 'running', 'permit', permit, 'redrive_at', now + tonumber(ARGV[3]))
      at_node[source], at_node[target] = (at_node[source] or 0) + 1, (at_node[target] or 0) + 1
      free = free - 1
      local record = redis.call('HGET', KEYS[6], id)
      if mine then
        taken, wanted = record, false
      else
        out[queue] = (out[queue] or 0) + 1
        if out[queue] == ahead then open = open - 1 end
        redis.call('HSET', KEYS[8], id, queue)
        published[#published + 1] = record
      end
    else
      passed = passed + 1
    end
  end
end

if taken ~= '' or #published > 0 then
  if status == 'pending' then redis.call('HSET', KEYS[1], 'status', 'running') end
  redis.call('HSETNX', KEYS[1], 'started_ms', now)
end
return {taken, unpack(published)}
