-- What a worker asks between two batches. Writes nothing, so it waits for no disk.
-- ARGV: queue, then per shard: job, shard, attempt
-- Returns {inputs that wait in the interactive lane, 1 or 0 per shard: whether it is still the worker's}
local queue = ARGV[1]
local found = {tonumber(redis.call('HGET', key('waiting'), queue .. ':interactive') or 0)}
for n = 2, #ARGV, 3 do
  local id, shard, attempt = unpack(ARGV, n, n + 2)
  table.insert(found, is_held(queue, id, shard, attempt) and 1 or 0)
end
return found
