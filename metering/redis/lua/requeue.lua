-- Move entries of a stream that have ids at or before the mark to its end. Redis gives such ids only when it lost
-- its last writes and its clock is behind: without this, they would pass for registered ones.
-- KEYS  1 deployment  2 usage
-- ARGV  1 deployment  2 first id after the mark (milliseconds)  3... ids of the entries
local entries = {}
for i = 3, #ARGV do
  local found = redis.call('XRANGE', KEYS[2], ARGV[i], ARGV[i])
  if found[1] then
    entries[#entries + 1] = found[1][2][2]
    redis.call('XDEL', KEYS[2], ARGV[i]) -- before what needs memory, as in capture.lua
  end
end
advance(KEYS[2], ARGV[2], '0')
for _, entry in ipairs(entries) do redis.call('XADD', KEYS[2], '*', 'r', entry) end
return {'ok'}
