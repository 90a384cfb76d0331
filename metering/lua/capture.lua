-- Charge a query and log its usage record: both or neither.
-- KEYS  1 deployment  2 account  3 expiry  4 holds  5 done  6 usage  7 idem
-- ARGV  1 deployment  2 hold  3 charge  4 record  5 ttl of the done mark (ms)
--       6 '1' if the hold has an Idempotency-Key  7 response to replay  8 ttl of the replay (ms)
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'lost'} end
local before = redis.call('GET', KEYS[5])
if before then
  redis.call('PEXPIRE', KEYS[5], ARGV[5]) -- a write, so that WAITAOF has something of this connection's to wait for
  return {'again', before}
end
if redis.call('EXISTS', KEYS[2]) == 0 then return {'account'} end

local charge = tonumber(ARGV[3])
local ceiling = redis.call('HGET', KEYS[4], ARGV[2])
if ceiling then
  if charge > tonumber(ceiling) then return {'above', ceiling} end
  -- HDEL comes first. Beyond maxmemory Redis refuses a script's first write if it needs memory, and none after one
  -- that does not: so nothing new is admitted then, and what was admitted is captured.
  redis.call('HDEL', KEYS[4], ARGV[2])
  redis.call('HINCRBY', KEYS[2], 'held', '-' .. ceiling)
  redis.call('ZREM', KEYS[3], ARGV[2])
elseif available(KEYS[2]) < charge then
  return {'expired'}
end

redis.call('HINCRBY', KEYS[2], 'spent', ARGV[3])
local id = redis.call('XADD', KEYS[6], '*', 'r', ARGV[4])
redis.call('SET', KEYS[5], id, 'PX', ARGV[5])
if ARGV[6] == '1' then
  redis.call('HSET', KEYS[7], 'state', 'done', 'response', ARGV[7])
  redis.call('PEXPIRE', KEYS[7], ARGV[8])
end
return {'ok', id}
