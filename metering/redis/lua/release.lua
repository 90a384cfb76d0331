-- Release what an account's holds hold for processes that are dead; answers how many there were.
-- KEYS  1 deployment  2 account  3 expiry  4 holds  5 api_keys  6 holding
-- ARGV  1 deployment  2 account's id  3... the processes
local dead, released = {}, 0
for i = 3, #ARGV do dead[ARGV[i]] = true end
local all = redis.call('HGETALL', KEYS[4])
for i = 1, #all, 2 do
  local _, _, _, process = parse_hold(all[i + 1])
  if dead[process] then
    release_hold(KEYS[2], KEYS[3], KEYS[4], KEYS[5], all[i])
    released = released + 1
  end
end
if redis.call('EXISTS', KEYS[4]) == 0 then redis.call('SREM', KEYS[6], ARGV[2]) end
return {'ok', int(released)}
