-- An account now, lapsed holds released.
-- KEYS  1 deployment  2 account  3 expiry  4 holds
-- ARGV  1 deployment
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'lost'} end
if redis.call('EXISTS', KEYS[2]) == 0 then return {'account'} end
release_expired(KEYS[2], KEYS[3], KEYS[4], now_ms())
return {'ok', unpack(redis.call('HMGET', KEYS[2], 'funded', 'spent', 'held'))}
