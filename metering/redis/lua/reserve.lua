-- Reserve prepaid money for a withdrawal: no query can have it, and it does not expire. Never what is held, and never
-- credit.
-- KEYS  1 deployment  2 account  3 expiry  4 holds  5 api_keys  6 reserves
-- ARGV  1 deployment  2 name of the withdrawal  3 units  4 id of the account
if redis.call('EXISTS', KEYS[2]) == 0 then return {'account'} end
if redis.call('HEXISTS', KEYS[6], ARGV[2]) == 1 then return {'ok'} end -- sent twice over a broken connection
release_expired(KEYS[2], KEYS[3], KEYS[4], KEYS[5], now_ms())
local a = redis.call('HMGET', KEYS[2], 'funded', 'spent', 'held')
local free = tonumber(a[1]) - tonumber(a[2]) - tonumber(a[3])
if free < tonumber(ARGV[3]) then return {'funds', int(free)} end
redis.call('HINCRBY', KEYS[2], 'held', ARGV[3])
redis.call('HSET', KEYS[6], ARGV[2], ARGV[3] .. ' ' .. ARGV[4])
return {'ok'}
