-- Store shards of a job that is not submitted yet. They vanish by themselves if it never is.
-- ARGV: id, lifetime ms, then per shard: shard, input block
local id, lifetime = ARGV[1], ARGV[2]
if redis.call('EXISTS', key('job', id)) == 1 then return end -- a late repeat must not give a live job's inputs an expiry
local inputs, pending = key('inputs', id), key('pending', id)
for n = 3, #ARGV, 2 do
  local shard, block = ARGV[n], ARGV[n + 1]
  if redis.call('HSET', inputs, shard, block) == 1 then redis.call('RPUSH', pending, shard) end
end
redis.call('PEXPIRE', inputs, lifetime)
redis.call('PEXPIRE', pending, lifetime)
