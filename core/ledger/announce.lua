-- Results of shards are about to be written to the result store: note their jobs first, so that whatever is written then is
-- removed with the job, even if the worker dies before it commits.
-- ARGV: queue, then per shard: job, shard, attempt
-- Returns 1 or 0 per shard: whether the worker still holds it
local queue = ARGV[1]
local held = {}
for n = 2, #ARGV, 3 do
  local id, shard, attempt = unpack(ARGV, n, n + 2)
  local mine = is_held(queue, id, shard, attempt)
  if mine then redis.call('SADD', key('stored'), id) else tally('refused:' .. queue, 1) end
  table.insert(held, mine and 1 or 0)
end
write_counts()
return held
