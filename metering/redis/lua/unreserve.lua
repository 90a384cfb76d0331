-- End a withdrawal: what was reserved may be spent again, unless the account's funds are less by now.
-- KEYS  1 deployment  2 account  3 reserves
-- ARGV  1 deployment  2 name of the withdrawal
local reserve = redis.call('HGET', KEYS[3], ARGV[2])
if reserve then
  redis.call('HINCRBY', KEYS[2], 'held', '-' .. string.match(reserve, '^%d+'))
  redis.call('HDEL', KEYS[3], ARGV[2])
end
return {'ok'}
