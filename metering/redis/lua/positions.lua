-- How far the meter is with some accounts.
-- KEYS  1 deployment  2... account
-- ARGV  1 deployment
-- Answers with four values for each: version, spent, the month of the free amount, what is used of it. The version of an
-- account that is not there is empty.
local found = {'ok'}
for i = 2, #KEYS do
  local a = redis.call('HMGET', KEYS[i], 'version', 'spent', 'free_month', 'free_used')
  for field, nothing in ipairs({'', '0', '', '0'}) do found[#found + 1] = a[field] or nothing end
end
return found
