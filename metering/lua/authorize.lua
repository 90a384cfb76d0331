-- Admit one query: key state, idempotency, rate and funds are checked and the ceiling is held, or nothing changes.
-- KEYS  1 deployment  2 account  3 expiry  4 holds  5 key  6 idem
-- ARGV  1 deployment  2 hold  3 ceiling  4 hold ttl (ms)  5 requests a minute (0: no limit)
--       6 fingerprint ('': no Idempotency-Key)  7 ttl of a running idem entry (ms)
--       8 how often the client's library has sent this again ('': the client sent the Idempotency-Key itself)
--       9 the most replays to such a library
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'lost'} end
if redis.call('EXISTS', KEYS[2]) == 0 then return {'account'} end
if redis.call('HEXISTS', KEYS[4], ARGV[2]) == 1 then return {'ok'} end -- sent twice over a broken connection
local key = redis.call('HMGET', KEYS[5], 'revoked', 'tat')
if key[1] then return {'revoked'} end

local now = now_ms()
release_expired(KEYS[2], KEYS[3], KEYS[4], now)

if ARGV[6] ~= '' then
  local first = redis.call('HMGET', KEYS[6], 'fingerprint', 'state', 'response', 'hold', 'replays')
  if first[1] then
    if first[1] ~= ARGV[6] then return {'mismatch'} end
    -- A library's first sending begins a new answer, whatever was answered before; so does one too many.
    local again = ARGV[8] ~= '0'
    if again and first[2] == 'done' then
      if ARGV[8] == '' then return {'replay', first[3]} end
      if tonumber(first[5] or '0') < tonumber(ARGV[9]) then
        redis.call('HINCRBY', KEYS[6], 'replays', 1)
        return {'replay', first[3]}
      end
    -- A running request whose hold has lapsed died on the way; this one takes its place.
    elseif again and redis.call('HEXISTS', KEYS[4], first[4]) == 1 then
      return {'running'}
    end
  end
end

-- Generic cell rate algorithm with a burst of one minute's requests.
local rpm = tonumber(ARGV[5])
local tat
if rpm > 0 then
  local interval = 60000 / rpm
  tat = math.max(tonumber(key[2] or '0'), now)
  local wait = tat - now - (rpm - 1) * interval
  if wait > 0 then return {'rate', int(math.ceil(wait))} end
  tat = tat + interval
end

local ceiling = tonumber(ARGV[3])
local free = available(KEYS[2])
if free < ceiling then return {'funds', int(free)} end

if tat then
  redis.call('HSET', KEYS[5], 'tat', string.format('%.3f', tat))
  redis.call('PEXPIRE', KEYS[5], 120000)
end
redis.call('HINCRBY', KEYS[2], 'held', ARGV[3])
redis.call('HSET', KEYS[4], ARGV[2], ARGV[3])
redis.call('ZADD', KEYS[3], int(now + tonumber(ARGV[4])), ARGV[2])
if ARGV[6] ~= '' then
  redis.call('HSET', KEYS[6], 'fingerprint', ARGV[6], 'state', 'running', 'hold', ARGV[2])
  redis.call('HDEL', KEYS[6], 'response', 'replays')
  redis.call('PEXPIRE', KEYS[6], ARGV[7])
end
return {'ok'}
