-- Release a hold, and let its Idempotency-Key be used again.
-- KEYS  1 deployment  2 account  3 expiry  4 holds  5 idempotency  6 api_keys
-- ARGV  1 deployment  2 hold  3 '1' if the hold has an Idempotency-Key
--       4 for how long an authorize of the hold that comes later is refused (ms; 0: it has come)
release_hold(KEYS[2], KEYS[3], KEYS[4], KEYS[6], ARGV[2])
if ARGV[3] == '1' then
  local first = redis.call('HMGET', KEYS[5], 'hold', 'state')
  if first[1] == ARGV[2] and first[2] == 'running' then redis.call('DEL', KEYS[5]) end
end
if ARGV[4] ~= '0' then
  redis.call('HSET', KEYS[4], ARGV[2], ABANDONED)
  redis.call('ZADD', KEYS[3], int(now_ms() + tonumber(ARGV[4])), ARGV[2])
end
return {'ok'}
