-- The last look before a claimed key is changed on a node: while anything moves, that node is the key's only place from here on.
-- WITH claims
-- KEYS  1 claims  2 written  3 active  4 frees  5 batches to be freed  6 undos
-- ARGV  1 object key  2 token  3 node  4 ttl ms, anew
-- Returns 1, or 0 when the claim is lost
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local token, expires = string.match(redis.call('HGET', KEYS[1], ARGV[1]) or '', '^(.*)|(%d+)$')
if token ~= ARGV[2] or tonumber(expires) <= now then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], token .. '|' .. string.format('%.0f', now + tonumber(ARGV[4])))
if moving(KEYS[3], KEYS[4], KEYS[5], KEYS[6]) then redis.call('HSET', KEYS[2], ARGV[1], ARGV[3]) end
return 1
