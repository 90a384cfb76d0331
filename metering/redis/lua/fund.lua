-- Converge an account to the ledger's view of it; opens the account if it is new.
-- KEYS  1 deployment  2 account  3 api_keys
-- ARGV  1 deployment  2 version  3 funded  4 spent (posted)  5 credit limit  6 month  7 free amount used (posted)
--       8... for each key that has spent this month: its id, its last day, spent on that day, spent in its month
local a = redis.call('HMGET', KEYS[2], 'version', 'spent', 'free_month', 'free_used')
if not a[1] then redis.call('HSET', KEYS[2], 'held', '0', 'free_held', '0') end
if not a[1] or tonumber(ARGV[2]) > tonumber(a[1]) then
  redis.call('HSET', KEYS[2], 'version', ARGV[2], 'funded', ARGV[3], 'credit', ARGV[5])
end
-- The meter has always captured at least what the ledger has posted; less means it lost its last writes.
if tonumber(ARGV[4]) > tonumber(a[2] or '-1') then redis.call('HSET', KEYS[2], 'spent', ARGV[4]) end
local month = a[3] or ''
if month < ARGV[6] or month == ARGV[6] and tonumber(ARGV[7]) > tonumber(a[4] or '-1') then
  redis.call('HSET', KEYS[2], 'free_month', ARGV[6], 'free_used', ARGV[7])
end
for i = 8, #ARGV, 4 do
  local key, day, day_spent, month_spent = unpack(ARGV, i, i + 3)
  local k = redis.call('HMGET', KEYS[3], key .. ':day', key .. ':day_spent', key .. ':month_spent')
  local last = k[1] or ''
  if last < day or last == day and tonumber(day_spent) > tonumber(k[2]) then
    redis.call('HSET', KEYS[3], key .. ':day', day, key .. ':day_spent', day_spent)
  end
  local newer, same = string.sub(last, 1, 7) < string.sub(day, 1, 7), string.sub(last, 1, 7) == string.sub(day, 1, 7)
  if newer or same and tonumber(month_spent) > tonumber(k[3]) then
    redis.call('HSET', KEYS[3], key .. ':month_spent', month_spent)
  end
end
return {'ok'}
