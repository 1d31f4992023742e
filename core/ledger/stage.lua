-- Store shards of a job that is not submitted yet. They vanish by themselves if it never is.
-- ARGV: id, lifetime ms, then per shard: shard, input block
local id, lifetime = ARGV[1], ARGV[2]
if redis.call('EXISTS', key('job', id)) == 1 then return end -- a late repeat must not give a live job's inputs an expiry
store_shards(id, 3)
redis.call('PEXPIRE', key('inputs', id), lifetime)
redis.call('PEXPIRE', key('pending', id), lifetime)
