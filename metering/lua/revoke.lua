-- Refuse an API key from now on. The mark has no expiry.
-- KEYS  1 deployment  2 key
-- ARGV  1 deployment
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'lost'} end
redis.call('HSET', KEYS[2], 'revoked', '1')
redis.call('PERSIST', KEYS[2])
return {'ok'}
