-- Keep the record of a batch whose file cannot be embedded. It has no job.
-- ARGV: id, tenant, lifetime ms, then the fields of its record with their names
local id, tenant, lifetime = unpack(ARGV, 1, 3)
local batch = key('batch', id)
if redis.call('EXISTS', batch) == 1 then return end -- a repeat of this very call
redis.call('HSET', batch, 'created_at', now, unpack(ARGV, 4))
redis.call('PEXPIRE', batch, lifetime)
redis.call('ZADD', key('batches', tenant), now, id)
redis.call('ZADD', key('expiring'), now + lifetime, id .. '/' .. tenant)
sweep(10)
