-- Keep the record of a batch whose file cannot be embedded. It has no job.
-- ARGV: id, tenant, lifetime ms, who is told (JSON, see `notify`, or ''), then the fields of its record with their names
local id, tenant, lifetime, told = unpack(ARGV, 1, 4)
local batch = key('batch', id)
if redis.call('EXISTS', batch) == 1 then return end -- a repeat of this very call
redis.call('HSET', batch, 'created_at', now, unpack(ARGV, 5))
redis.call('PEXPIRE', batch, lifetime)
redis.call('ZADD', key('batches', tenant), now, id)
redis.call('ZADD', key('expiring'), now + lifetime, id .. '/' .. tenant)
if told ~= '' then notify(id, tenant, told, 'batch.failed') end
sweep(10)
