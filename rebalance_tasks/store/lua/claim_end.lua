-- Give a claim back, with what became of the object.
-- WITH claims
-- KEYS  1 claims  2 written  3 active  4 frees  5 batches to be freed  6 undos  7 forwarding  8 locations  9 usage
-- ARGV  1 object key  2 token  3 node on which it was changed ('': nothing was)  4 1 = an object is there now
--       5 1 = it needs an override, or a catalogue keeps it  6 bytes by which the node holds more
-- Returns 1, or 0 when the claim is lost: another writer, or a flip, may have come in between
local token = string.match(redis.call('HGET', KEYS[1], ARGV[1]) or '', '^(.*)|%d+$')
if token ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
local key, node = ARGV[1], ARGV[3]
if node == '' then return 1 end
if moving(KEYS[3], KEYS[4], KEYS[5], KEYS[6]) then
  redis.call('HSET', KEYS[2], key, node)
else
  redis.call('HDEL', KEYS[2], key)
end
if ARGV[6] ~= '0' then redis.call('HINCRBY', KEYS[9], node, ARGV[6]) end
local forwarded = string.match(redis.call('HGET', KEYS[7], key) or '', '^(.*)|%d+$')
if forwarded and (forwarded ~= node or ARGV[4] == '0') then redis.call('HDEL', KEYS[7], key) end
if ARGV[4] == '1' and ARGV[5] == '1' then
  redis.call('HSET', KEYS[8], key, node)
else
  redis.call('HDEL', KEYS[8], key)
end
return 1
