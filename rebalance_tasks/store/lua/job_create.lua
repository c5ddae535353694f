-- Create a job with all its groups, once.
-- KEYS  1 job  2 active  3 jobs  4 states  5 groups  6 queue  7 moves  8 causes  9 events
--       10 written  11 frees  12 batches to be freed  13 undos
-- ARGV  1 job id  2 states (one byte a move)  3 number of field pairs  4.. field, value …
--       then number of chunks, ("<group>:<n>", chunk) …   then number of groups,
--       (id, static JSON, score, moves left, offset, size, skipped, stretches, data queue, source, target) …
--       then (cause, number of moves skipped from the start) …
-- Returns {'created'} | {'exists'} | {'busy', active job id}
if redis.call('EXISTS', KEYS[1]) == 1 then return {'exists'} end
local active = redis.call('GET', KEYS[2])
if active and active ~= ARGV[1] then return {'busy', active} end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local at = 3
local pairs_n = tonumber(ARGV[at])
at = at + 1
for _ = 1, pairs_n do
  redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
  at = at + 2
end
redis.call('HSET', KEYS[1], 'created_ms', now)
redis.call('DEL', KEYS[4], KEYS[5], KEYS[6], KEYS[7])
if #ARGV[2] > 0 then redis.call('SET', KEYS[4], ARGV[2]) end
local chunks_n = tonumber(ARGV[at])
at = at + 1
for _ = 1, chunks_n do
  redis.call('HSET', KEYS[7], ARGV[at], ARGV[at + 1])
  at = at + 2
end
local groups_n = tonumber(ARGV[at])
at = at + 1
local queues, seen = {}, {}
for _ = 1, groups_n do
  local id = ARGV[at]
  local g = KEYS[1] .. ':g:' .. id
  redis.call('HSET', KEYS[5], id, ARGV[at + 1])
  redis.call('ZADD', KEYS[6], ARGV[at + 2], id)
  redis.call('DEL', g)
  redis.call('HSET', g, 'status', 'pending', 'left', ARGV[at + 3], 'offset', ARGV[at + 4], 'size', ARGV[at + 5],
    'epoch', 0, 'completed', 0, 'failed', 0, 'skipped', ARGV[at + 6], 'bytes', 0, 'score', ARGV[at + 2],
    'next', 0, 'stretches', ARGV[at + 7], 'queue', ARGV[at + 8], 'source', ARGV[at + 9], 'target', ARGV[at + 10])
  if not seen[ARGV[at + 8]] then
    seen[ARGV[at + 8]] = true
    queues[#queues + 1] = ARGV[at + 8]
  end
  at = at + 11
end
redis.call('DEL', KEYS[8])
for i = at, #ARGV, 2 do redis.call('HSET', KEYS[8], ARGV[i], ARGV[i + 1]) end
redis.call('HSET', KEYS[1], 'queues', table.concat(queues, '\n'))
-- What was written while an earlier job ran may be moved by this one, unless a copy of it may still stand somewhere.
if redis.call('EXISTS', KEYS[11], KEYS[12], KEYS[13]) == 0 then redis.call('DEL', KEYS[10]) end
redis.call('SET', KEYS[2], ARGV[1])
redis.call('ZADD', KEYS[3], now, ARGV[1])
local told = redis.call('HMGET', KEYS[1], 'requested_by', 'plan_id', 'total', 'total_bytes')
redis.call('XADD', KEYS[9], 'MAXLEN', '~', 10000, '*', 'kind', 'job.started', 'job', ARGV[1], 'by', told[1],
  'data', cjson.encode({ plan_id = told[2], moves = tonumber(told[3]), bytes = tonumber(told[4]), groups = groups_n }))
return {'created'}
