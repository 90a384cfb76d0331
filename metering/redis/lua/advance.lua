-- Let a shard's stream go on after what is registered: a new stream would begin with its clock, which may be behind.
-- KEYS  1 deployment  2 usage
-- ARGV  1 deployment  2 3 the mark: milliseconds, sequence
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'lost'} end
advance(KEYS[2], ARGV[2], ARGV[3])
return {'ok'}
