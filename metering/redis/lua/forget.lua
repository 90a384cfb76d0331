-- Keep the marks of captures that the ledger knows for a little longer, and not for days: the ledger knows for ever.
-- KEYS  1 deployment  2... done
-- ARGV  1 deployment  2 ttl of the done marks (ms)
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {'lost'} end
for i = 2, #KEYS do redis.call('PEXPIRE', KEYS[i], ARGV[2]) end
return {'ok'}
