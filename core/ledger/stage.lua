-- Store shards of a job that is not submitted yet. They vanish by themselves if it never is.
-- ARGV: id, lifetime ms, then per shard: shard, input block
-- Returns bytes of all its blocks so far
local id, lifetime = ARGV[1], ARGV[2]
if redis.call('EXISTS', key('job', id)) == 1 then return 0 end -- a late repeat must not give a live job's inputs an expiry
local bytes = redis.call('INCRBY', key('staged', id), store_shards(id, 3))
for _, name in ipairs({'inputs', 'pending', 'staged'}) do redis.call('PEXPIRE', key(name, id), lifetime) end
return bytes
