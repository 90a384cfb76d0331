-- Give a shard's drainer lease back, if it is still ours.
-- KEYS  1 deployment  2 drainer
-- ARGV  1 deployment  2 owner
if redis.call('HGET', KEYS[2], 'owner') == ARGV[2] then redis.call('DEL', KEYS[2]) end
return {'ok'}
