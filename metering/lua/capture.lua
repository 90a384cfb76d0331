-- Charge a query and log its usage record: both or neither.
-- KEYS  1 deployment  2 account  3 expiry  4 holds  5 done  6 usage  7 idem
-- ARGV  1 deployment  2 hold  3 charge  4 record  5 ttl of the done mark (ms)
--       6 '1' if the hold has an Idempotency-Key  7 response to replay ('': none)  8 ttl of the replay (ms)
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'lost'} end
local before = redis.call('GET', KEYS[5])
if before then return {'again', before} end
if redis.call('EXISTS', KEYS[2]) == 0 then return {'account'} end

-- The key may be another request's by now: one that took the place of this lapsed one, or a library's next.
local idem = ARGV[6] == '1' and redis.call('HGET', KEYS[7], 'hold')
local charge = tonumber(ARGV[3])
local ceiling = redis.call('HGET', KEYS[4], ARGV[2])
if ceiling then
  if charge > tonumber(ceiling) then return {'above', ceiling} end
  redis.call('HINCRBY', KEYS[2], 'held', '-' .. ceiling)
  redis.call('HDEL', KEYS[4], ARGV[2])
  redis.call('ZREM', KEYS[3], ARGV[2])
elseif available(KEYS[2]) < charge or (idem and idem ~= ARGV[2]) then
  return {'expired'}
end

redis.call('HINCRBY', KEYS[2], 'spent', ARGV[3])
local id = redis.call('XADD', KEYS[6], '*', 'r', ARGV[4])
redis.call('SET', KEYS[5], id, 'PX', ARGV[5])
if idem == ARGV[2] then
  if ARGV[7] == '' then
    redis.call('DEL', KEYS[7])
  else
    redis.call('HSET', KEYS[7], 'state', 'done', 'response', ARGV[7])
    redis.call('PEXPIRE', KEYS[7], ARGV[8])
  end
end
return {'ok', id}
