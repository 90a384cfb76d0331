-- Shared by every script of the meter; metering/redis_meter.py puts it in front of each.
--
-- Key layout. Everything that one script touches carries the account's shard as hash tag, so the same scripts
-- run on a Redis Cluster:
--   {sNN}:deployment      string  id of the deployment that these books belong to
--   {sNN}:account:ID      hash    funded, version, spent, held   (units)
--   {sNN}:expiry:ID       zset    hold id -> when it lapses      (ms)
--   {sNN}:holds:ID        hash    hold id -> ceiling             (units)
--   {sNN}:key:ID          hash    revoked, tat                   (rate limit: theoretical arrival time, ms)
--   {sNN}:idem:ID:HASH    hash    fingerprint, hold, state, response, replays
--   {sNN}:done:HOLD       string  stream id of the captured record
--   {sNN}:usage           stream  r -> canonical bytes of a usage record
--   {sNN}:probe           string  written by check
--   {sNN}:drainer         hash    owner, token: the lease of the drainer that owns the shard
--   {sNN}:fence           string  the last fencing token
--
-- Amounts are integers below 2^53, exact in Lua's doubles. They go back to Redis through this format, because
-- Lua's own conversion would turn large ones into scientific notation.
local function int(n) return string.format('%.0f', n) end

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- Releases the lapsed holds of one account. Bounded, so that no script runs long; the next call goes on.
local function release_expired(account, expiry, holds, now)
  local lapsed = redis.call('ZRANGEBYSCORE', expiry, '-inf', now, 'LIMIT', 0, 128)
  for _, hold in ipairs(lapsed) do
    local ceiling = redis.call('HGET', holds, hold)
    if ceiling then redis.call('HINCRBY', account, 'held', '-' .. ceiling) end
    redis.call('HDEL', holds, hold)
    redis.call('ZREM', expiry, hold)
  end
end

local function available(account)
  local a = redis.call('HMGET', account, 'funded', 'spent', 'held')
  return tonumber(a[1]) - tonumber(a[2]) - tonumber(a[3])
end
