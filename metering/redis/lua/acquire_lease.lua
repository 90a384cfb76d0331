-- Take or keep the lease of a shard's drainer; answers its fencing token, or nothing if another drainer has it.
-- KEYS  1 deployment  2 drainer  3 fence
-- ARGV  1 deployment  2 owner  3 ttl (ms)  4 the last token that SQL has seen: Redis may have lost its own
local held = redis.call('HMGET', KEYS[2], 'owner', 'token')
if held[1] == ARGV[2] and tonumber(held[2]) >= tonumber(ARGV[4]) then
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
  return {'ok', held[2]}
end
if held[1] and held[1] ~= ARGV[2] then return {'taken'} end
local token = int(math.max(tonumber(redis.call('GET', KEYS[3]) or '0'), tonumber(ARGV[4])) + 1)
redis.call('DEL', KEYS[2]) -- first, as in capture.lua: the drain is what frees memory
redis.call('SET', KEYS[3], token)
redis.call('HSET', KEYS[2], 'owner', ARGV[2], 'token', token)
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return {'ok', token}
