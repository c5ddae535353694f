-- Where readers are sent for a key, in one trip.
-- WITH where
-- KEYS  1 written  2 forwarding  3 locations  4 active  5 frees  6 batches to be freed  7 undos  8 node states  9 fleet info
-- ARGV  1 object key
-- Returns as `where`
return where(KEYS, ARGV[1])
