-- Admit one query: key state, idempotency, limits and funds are checked and the ceiling is held, or nothing changes.
-- KEYS  1 deployment  2 account  3 expiry  4 holds  5 api_keys  6 idempotency  7 holding
-- ARGV  1 deployment  2 hold  3 ceiling  4 hold ttl (ms)  5 requests a minute
--       6 fingerprint ('': no Idempotency-Key)  7 ttl of a running Idempotency-Key (ms)
--       8 key  9 tokens that the query may use  10 tokens a minute  11 requests at once
--       12 the key's cap of a day  13 of a month  14 the day  15 free amount of a month
--       16 how often the client's library has sent this again ('': the client sent the Idempotency-Key itself)
--       17 the most replays to such a library  18 '1': only look whether it was answered before, and admit nothing
--       19 account's id  20 the process that the hold is for
-- A limit or cap of 0 is none. Answers with what the rates leave: requests, until all are back (ms), tokens, until all
-- are back (ms), requests at once.
if redis.call('EXISTS', KEYS[2]) == 0 then return {'account'} end

local now = now_ms()
release_expired(KEYS[2], KEYS[3], KEYS[4], KEYS[5], now)
local key = ARGV[8]
local state = redis.call('HMGET', KEYS[5], key .. ':revoked', key .. ':requests', key .. ':tokens', key .. ':running',
  key .. ':held', key .. ':day', key .. ':day_spent', key .. ':month_spent')
local limits = {requests = tonumber(ARGV[5]), tokens = tonumber(ARGV[10]), running = tonumber(ARGV[11])}
local used = {
  requests = math.max(tonumber(state[2] or '0') - now, 0),
  tokens = math.max(tonumber(state[3] or '0') - now, 0),
  running = tonumber(state[4] or '0'),
}

-- Generic cell rate algorithm with a burst of one minute. A limit of n a minute lets one more through every 60000 / n
-- ms; `used` is how many ms the arrivals so far are ahead of that, and never more than a minute.
local MINUTE = 60000
local function after(rate, weight)
  if limits[rate] == 0 then return used[rate] end
  return used[rate] + weight * MINUTE / limits[rate]
end
local function wait(rate, weight)
  local ms = after(rate, weight) - MINUTE
  return ms > 0.5 and limits[rate] > 0 and math.ceil(ms) or 0 -- half a ms for what adding up fractions leaves
end
local function left(rate)
  local units = math.floor((MINUTE - used[rate]) * limits[rate] / MINUTE + 0.01)
  return int(math.max(units, 0)), int(math.ceil(used[rate]))
end
local function quota()
  local requests, requests_ms = left('requests')
  local tokens, tokens_ms = left('tokens')
  return requests, requests_ms, tokens, tokens_ms, int(math.max(limits.running - used.running, 0))
end

local before = redis.call('HGET', KEYS[4], ARGV[2])
if before == ABANDONED then return {'abandoned'} end -- it was given up before it came here
local _, again = parse_hold(before)
if again then return {'ok', again, quota()} end -- sent twice over a broken connection
if state[1] then return {'revoked'} end

-- An answer is given again within the rate of requests and while the key has a place, as a new one would be begun. It uses
-- no tokens, and gives its place back at once.
local function replay(first)
  local ms = wait('requests', 1)
  if ms > 0 then return {'rate', 'requests', int(ms), quota()} end
  if limits.running > 0 and used.running >= limits.running then return {'rate', 'concurrent', '1000', quota()} end
  if limits.requests > 0 then
    used.requests = after('requests', 1)
    redis.call('HSET', KEYS[5], key .. ':requests', string.format('%.3f', now + used.requests))
  end
  if ARGV[16] ~= '' then redis.call('HINCRBY', KEYS[6], 'replays', 1) end
  return {'replay', first[3], first[4], quota()}
end

if ARGV[6] ~= '' then
  local first = redis.call('HMGET', KEYS[6], 'fingerprint', 'state', 'response', 'hold', 'replays')
  if first[1] then
    if first[1] ~= ARGV[6] then return {'mismatch'} end
    -- A library's first sending begins a new answer, whatever was answered before; so does one too many.
    local again = ARGV[16] ~= '0'
    if again and first[2] == 'done' then
      if ARGV[16] == '' or tonumber(first[5] or '0') < tonumber(ARGV[17]) then return replay(first) end
    -- A running request whose hold has expired died on the way; this one takes its place.
    elseif again and redis.call('HEXISTS', KEYS[4], first[4]) == 1 then
      return {'running', first[4]}
    end
  end
end

if ARGV[18] == '1' then return {'new'} end

local tokens = tonumber(ARGV[9])
if limits.tokens > 0 and tokens > limits.tokens then return {'tokens'} end
local ms = math.max(wait('requests', 1), wait('tokens', tokens))
if ms > 0 then return {'rate', wait('requests', 1) >= ms and 'requests' or 'tokens', int(ms), quota()} end
if limits.running > 0 and used.running >= limits.running then return {'rate', 'concurrent', '1000', quota()} end

-- The free amount of the month is used first; what it leaves must be within the key's caps and the account's funds.
local ceiling, day = tonumber(ARGV[3]), ARGV[14]
local month = string.sub(day, 1, 7)
local account = read_account(KEYS[2])
local free = math.min(ceiling, free_left(account, month, tonumber(ARGV[15])))
local paid = ceiling - free
local last, held = state[6] or '', tonumber(state[5] or '0')
local function capped(cap, spent)
  return cap > 0 and cap - spent - held < paid
end
if capped(tonumber(ARGV[12]), last >= day and tonumber(state[7]) or 0) then return {'cap', 'day'} end
if capped(tonumber(ARGV[13]), string.sub(last, 1, 7) >= month and tonumber(state[8]) or 0) then
  return {'cap', 'month'}
end
local funds = available(account)
if funds < paid then return {'funds', int(funds)} end

used.requests, used.tokens, used.running = after('requests', 1), after('tokens', tokens), used.running + 1
redis.call('HSET', KEYS[5], key .. ':requests', string.format('%.3f', now + used.requests),
  key .. ':tokens', string.format('%.3f', now + used.tokens),
  key .. ':running', int(used.running), key .. ':held', int(held + paid))
redis.call('HSET', KEYS[2], 'held', int(account.held + paid), 'free_held', int(account.free_held + free))
redis.call('HSET', KEYS[4], ARGV[2], int(paid) .. ' ' .. int(free) .. ' ' .. key .. ' ' .. ARGV[20])
redis.call('SADD', KEYS[7], ARGV[19])
redis.call('ZADD', KEYS[3], int(now + tonumber(ARGV[4])), ARGV[2])
if ARGV[6] ~= '' then
  redis.call('HSET', KEYS[6], 'fingerprint', ARGV[6], 'state', 'running', 'hold', ARGV[2])
  redis.call('HDEL', KEYS[6], 'response', 'replays')
  redis.call('PEXPIRE', KEYS[6], ARGV[7])
end
return {'ok', int(free), quota()}
