-- Whether payments can be taken: the books are this deployment's, and can be written.
-- KEYS  1 deployment  2 probe
-- ARGV  1 deployment
redis.call('SET', KEYS[2], '1', 'PX', 1000)
return {'ok'}
