-- Refuse an API key from now on, for ever.
-- KEYS  1 deployment  2 keys
-- ARGV  1 deployment  2 key
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'lost'} end
redis.call('HSET', KEYS[2], ARGV[2] .. ':revoked', '1')
return {'ok'}
