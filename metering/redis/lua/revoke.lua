-- Refuse an API key from now on, for ever.
-- KEYS  1 deployment  2 api_keys
-- ARGV  1 deployment  2 key
redis.call('HSET', KEYS[2], ARGV[2] .. ':revoked', '1')
return {'ok'}
