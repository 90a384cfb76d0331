-- Let a shard's stream go on after what is registered: a new stream would begin with its clock, which may be behind.
-- KEYS  1 deployment  2 usage
-- ARGV  1 deployment  2 3 the mark: milliseconds, sequence
advance(KEYS[2], ARGV[2], ARGV[3])
return {'ok'}
