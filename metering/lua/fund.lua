-- Converge an account to the ledger's view of it; opens the account if it is new.
-- KEYS  1 deployment  2 account
-- ARGV  1 deployment  2 version  3 funded  4 spent (posted)
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'lost'} end
local a = redis.call('HMGET', KEYS[2], 'version', 'spent')
if not a[1] then
  redis.call('HSET', KEYS[2], 'version', ARGV[2], 'funded', ARGV[3], 'spent', ARGV[4], 'held', '0')
  return {'ok'}
end
if tonumber(ARGV[2]) > tonumber(a[1]) then
  redis.call('HSET', KEYS[2], 'version', ARGV[2], 'funded', ARGV[3])
end
-- The meter has always captured at least what the ledger has posted; less means it lost its last writes.
if tonumber(ARGV[4]) > tonumber(a[2]) then redis.call('HSET', KEYS[2], 'spent', ARGV[4]) end
return {'ok'}
