-- Charge a query and log its usage record: both or neither.
-- KEYS  1 deployment  2 account  3 expiry  4 holds  5 captured  6 usage  7 idempotency  8 api_keys
-- ARGV  1 deployment  2 hold  3 charge  4 record  5 ttl of the captured mark (ms)
--       6 '1' if the hold has an Idempotency-Key  7 response to replay ('': none)  8 ttl of the replay (ms)
--       9 key  10 free part of the charge  11 the record's day  12 free amount of a month
local before = redis.call('GET', KEYS[5])
if before then
  redis.call('PEXPIRE', KEYS[5], ARGV[5]) -- a write, so that WAITAOF has something of this connection's to wait for
  return {'again', before}
end
local account = read_account(KEYS[2])
if not account then return {'account'} end

-- The Idempotency-Key may be another request's by now: one that took this expired one's place, or a library's next.
local idem = ARGV[6] == '1' and redis.call('HGET', KEYS[7], 'hold')
local key, free, day = ARGV[9], tonumber(ARGV[10]), ARGV[11]
local paid, month = tonumber(ARGV[3]) - free, string.sub(day, 1, 7)
local state = redis.call('HMGET', KEYS[8], key .. ':day', key .. ':day_spent', key .. ':month_spent', key .. ':held',
  key .. ':running')
local held, held_free = read_hold(KEYS[4], ARGV[2])
local of_key, of_account = {}, {'spent', int(account.spent + paid)}
local function set(fields, ...)
  for _, each in ipairs({...}) do fields[#fields + 1] = each end
end

if held then
  held, held_free = tonumber(held), tonumber(held_free)
  if paid > held or free > held_free then return {'above', int(held + held_free)} end
  -- As release does it, in fewer writes: what is released and what is spent are in the same hashes.
  redis.call('HDEL', KEYS[4], ARGV[2])
  redis.call('ZREM', KEYS[3], ARGV[2])
  set(of_account, 'held', int(account.held - held), 'free_held', int(account.free_held - held_free))
  set(of_key, key .. ':held', int(tonumber(state[4] or '0') - held),
    key .. ':running', int(tonumber(state[5] or '0') - 1))
elseif idem and idem ~= ARGV[2] then
  return {'expired'}
elseif available(account) < paid or free > 0 and free_left(account, month, tonumber(ARGV[12])) < free then
  return {'expired'}
end

if free > 0 and account.free_month <= month then
  local before = account.free_month == month and account.free_used or 0
  set(of_account, 'free_month', month, 'free_used', int(before + free))
end
-- The key's spending counts on the day of the record; days before the last one are over.
local last = state[1] or ''
if last <= day then
  set(of_key, key .. ':day', day, key .. ':day_spent', int((last == day and tonumber(state[2]) or 0) + paid))
end
if string.sub(last, 1, 7) <= month then
  local before = string.sub(last, 1, 7) == month and tonumber(state[3]) or 0
  set(of_key, key .. ':month_spent', int(before + paid))
end
redis.call('HSET', KEYS[2], unpack(of_account))
if #of_key > 0 then redis.call('HSET', KEYS[8], unpack(of_key)) end

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
