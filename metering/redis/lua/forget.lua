-- Forget soon that records were captured: the ledger knows it for ever.
-- KEYS  1 deployment  2... captured
-- ARGV  1 deployment  2 ttl of the marks (ms)
for i = 2, #KEYS do redis.call('PEXPIRE', KEYS[i], ARGV[2]) end
return {'ok'}
