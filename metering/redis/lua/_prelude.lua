-- Shared by every script; metering/redis/scripts.py puts it in front of each. metering/redis/keys.py says what the keys
-- hold; a script begins with the names of those that it is given.
--
-- Every write of a script goes to the append-only file on its own, so fields of one hash are written together. That
-- they were read before is no race: nothing else runs in between.

-- The first key holds the id of the deployment whose books these are, the first argument is the caller's.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'lost'} end

-- Amounts are integers below 2^53, exact in Lua's doubles. They go back to Redis through this format, because
-- Lua's own conversion would turn large ones into scientific notation.
local function int(n) return string.format('%.0f', n) end

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- What stands in the place of a hold whose caller has given it up, perhaps before its authorize comes here.
local ABANDONED = 'abandoned'

-- What a hold holds: units to be paid, units of the free amount, the id of its key, and the process that it is for;
-- nothing if it is gone or abandoned.
local function parse_hold(value)
  if value then return string.match(value, '^(%d+) (%d+) (%S*) ?(%S*)$') end
end

local function read_hold(holds, hold) return parse_hold(redis.call('HGET', holds, hold)) end

-- Gives back all that a hold holds. Harmless if it is gone.
local function release_hold(account, expiry, holds, keys, hold)
  local paid, free, key = read_hold(holds, hold)
  -- HDEL comes first. Beyond maxmemory Redis refuses a script's first write if it needs memory, and none after one
  -- that does not: so nothing new is admitted then, and what was admitted is captured.
  redis.call('HDEL', holds, hold)
  if paid then
    redis.call('HINCRBY', account, 'held', int(0 - tonumber(paid)))
    redis.call('HINCRBY', account, 'free_held', int(0 - tonumber(free)))
    redis.call('HINCRBY', keys, key .. ':held', int(0 - tonumber(paid)))
    redis.call('HINCRBY', keys, key .. ':running', '-1')
  end
  redis.call('ZREM', expiry, hold)
end

-- Releases the expired holds of one account. Bounded, so that no script runs long; the next call goes on.
local function release_expired(account, expiry, holds, keys, now)
  for _, hold in ipairs(redis.call('ZRANGEBYSCORE', expiry, '-inf', now, 'LIMIT', 0, 128)) do
    release_hold(account, expiry, holds, keys, hold)
  end
end

-- Makes the stream's next id come after the one given.
local function advance(stream, ms, sequence)
  local id = ms .. '-' .. sequence
  if redis.call('EXISTS', stream) == 0 then
    redis.call('XADD', stream, id, 'r', '')
    redis.call('XDEL', stream, id)
    return
  end
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      local last_ms, last_sequence = string.match(info[i + 1], '^(%d+)-(%d+)$')
      last_ms, last_sequence = tonumber(last_ms), tonumber(last_sequence)
      if last_ms < tonumber(ms) or (last_ms == tonumber(ms) and last_sequence < tonumber(sequence)) then
        redis.call('XSETID', stream, id)
      end
    end
  end
end

-- What the meter knows of an account, as numbers, in one reading; nothing if there is no such account.
local function read_account(account)
  local a = redis.call('HMGET', account, 'funded', 'credit', 'spent', 'held', 'free_month', 'free_used', 'free_held')
  if not a[1] then return end
  return {
    funded = tonumber(a[1]), credit = tonumber(a[2] or '0'), spent = tonumber(a[3]), held = tonumber(a[4]),
    free_month = a[5] or '', free_used = tonumber(a[6] or '0'), free_held = tonumber(a[7] or '0'),
  }
end

local function available(a) return a.funded + a.credit - a.spent - a.held end

-- Days are YYYY-MM-DD and months YYYY-MM, so text order is time order. In a new month nothing is used yet, but what is
-- held counts, because it may be captured in any. A month that is over has nothing left.
local function free_left(a, month, grant)
  if a.free_month > month then return 0 end
  return math.max(0, grant - (a.free_month == month and a.free_used or 0) - a.free_held)
end
