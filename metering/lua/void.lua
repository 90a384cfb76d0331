-- Release a hold, and let its Idempotency-Key be used again.
-- KEYS  1 deployment  2 account  3 expiry  4 holds  5 idem
-- ARGV  1 deployment  2 hold  3 '1' if the hold has an Idempotency-Key
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'lost'} end
local ceiling = redis.call('HGET', KEYS[4], ARGV[2])
if ceiling then
  redis.call('HDEL', KEYS[4], ARGV[2]) -- first, as in capture.lua: it frees memory
  redis.call('HINCRBY', KEYS[2], 'held', '-' .. ceiling)
  redis.call('ZREM', KEYS[3], ARGV[2])
end
if ARGV[3] == '1' then
  local first = redis.call('HMGET', KEYS[5], 'hold', 'state')
  if first[1] == ARGV[2] and first[2] == 'running' then redis.call('DEL', KEYS[5]) end
end
return {'ok'}
