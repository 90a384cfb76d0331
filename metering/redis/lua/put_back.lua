-- End a withdrawal: what was set aside may be spent again, unless the account's funds are less by now.
-- KEYS  1 deployment  2 account  3 aside
-- ARGV  1 deployment  2 name of the withdrawal
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'lost'} end
local aside = redis.call('HGET', KEYS[3], ARGV[2])
if aside then
  redis.call('HINCRBY', KEYS[2], 'held', '-' .. string.match(aside, '^%d+'))
  redis.call('HDEL', KEYS[3], ARGV[2])
end
return {'ok'}
