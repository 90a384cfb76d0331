-- Charge a query and log its usage record: both or neither.
-- KEYS  1 deployment  2 account  3 expiry  4 holds  5 done  6 usage  7 idem  8 keys
-- ARGV  1 deployment  2 hold  3 charge  4 record  5 ttl of the done mark (ms)
--       6 '1' if the hold has an Idempotency-Key  7 response to replay ('': none)  8 ttl of the replay (ms)
--       9 key  10 free part of the charge  11 the record's day  12 free amount of a month
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'lost'} end
local before = redis.call('GET', KEYS[5])
if before then
  redis.call('PEXPIRE', KEYS[5], ARGV[5]) -- a write, so that WAITAOF has something of this connection's to wait for
  return {'again', before}
end
if redis.call('EXISTS', KEYS[2]) == 0 then return {'account'} end

-- The Idempotency-Key may be another request's by now: one that took this lapsed one's place, or a library's next.
local idem = ARGV[6] == '1' and redis.call('HGET', KEYS[7], 'hold')
local free, day = tonumber(ARGV[10]), ARGV[11]
local paid, month = tonumber(ARGV[3]) - free, string.sub(day, 1, 7)
local last = redis.call('HGET', KEYS[8], ARGV[9] .. ':day') or ''
local held, held_free = reserved(KEYS[4], ARGV[2])
if held then
  if paid > tonumber(held) or free > tonumber(held_free) then
    return {'above', int(tonumber(held) + tonumber(held_free))}
  end
  release(KEYS[2], KEYS[3], KEYS[4], KEYS[8], ARGV[2])
elseif idem and idem ~= ARGV[2] then
  return {'expired'}
elseif available(KEYS[2]) < paid or free > 0 and free_left(KEYS[2], month, tonumber(ARGV[12])) < free then
  return {'expired'}
end

redis.call('HINCRBY', KEYS[2], 'spent', int(paid))
if free > 0 then
  local counted = redis.call('HGET', KEYS[2], 'free_month') or ''
  if counted < month then redis.call('HSET', KEYS[2], 'free_month', month, 'free_used', '0') end
  if counted <= month then redis.call('HINCRBY', KEYS[2], 'free_used', int(free)) end
end
-- The key's spending counts on the day of the record; days before the last one are over.
if last < day then
  redis.call('HSET', KEYS[8], ARGV[9] .. ':day', day, ARGV[9] .. ':day_spent', '0')
  if string.sub(last, 1, 7) < month then redis.call('HSET', KEYS[8], ARGV[9] .. ':month_spent', '0') end
end
if last <= day then redis.call('HINCRBY', KEYS[8], ARGV[9] .. ':day_spent', int(paid)) end
if string.sub(last, 1, 7) <= month then redis.call('HINCRBY', KEYS[8], ARGV[9] .. ':month_spent', int(paid)) end

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
