-- Take or keep the mark of the one server that the books have, or only look at it.
-- KEYS  1 deployment  2 instance
-- ARGV  1 deployment  2 generation ('': only look)  3 the generation that it may follow  4 place  5 host  6 folder
--       7 beat  8 for how long the lease lasts from now (ms; '': as long as it does)
local found = redis.call('HMGET', KEYS[2], 'generation', 'place', 'host', 'folder', 'beat', 'ends')
local now, ends = now_ms(), tonumber(found[6] or '0')
local function answer(word)
  return {word, found[1] or '', found[2] or '', found[3] or '', found[4] or '', found[5] or '0',
    int(math.max(ends - now, 0))}
end
if ARGV[2] == '' then return answer('ok') end
if found[1] and found[1] ~= ARGV[2] and found[1] ~= ARGV[3] then return answer('other') end
if found[2] and found[2] ~= ARGV[4] and ends > now then return answer('other') end
local beat = tonumber(ARGV[7])
if found[1] == ARGV[2] then beat = math.max(beat, tonumber(found[5])) end -- a command and its server may overtake each other
if ARGV[8] ~= '' then ends = now + tonumber(ARGV[8]) end
redis.call('DEL', KEYS[2]) -- first, as in capture.lua: a server starts beyond maxmemory, too, and drains
redis.call('HSET', KEYS[2], 'generation', ARGV[2], 'place', ARGV[4], 'host', ARGV[5], 'folder', ARGV[6],
  'beat', int(beat), 'ends', int(ends))
return answer('ok')
