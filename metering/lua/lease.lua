-- Take or keep the lease of a shard's drainer; answers its fencing token, or nothing if another drainer has it.
-- KEYS  1 deployment  2 drainer  3 fence
-- ARGV  1 deployment  2 owner  3 ttl (ms)
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'lost'} end
local held = redis.call('HMGET', KEYS[2], 'owner', 'token')
if held[1] == ARGV[2] then
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
  return {'ok', held[2]}
end
if held[1] then return {'taken'} end
local token = int(redis.call('INCR', KEYS[3]))
redis.call('HSET', KEYS[2], 'owner', ARGV[2], 'token', token)
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return {'ok', token}
