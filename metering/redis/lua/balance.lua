-- An account now, expired holds released.
-- KEYS  1 deployment  2 account  3 expiry  4 holds  5 api_keys
-- ARGV  1 deployment
if redis.call('EXISTS', KEYS[2]) == 0 then return {'account'} end
release_expired(KEYS[2], KEYS[3], KEYS[4], KEYS[5], now_ms())
local found = redis.call('HMGET', KEYS[2], 'funded', 'spent', 'held', 'credit', 'free_used', 'free_held', 'free_month')
for i = 4, 7 do found[i] = found[i] or (i == 7 and '' or '0') end
return {'ok', unpack(found)}
