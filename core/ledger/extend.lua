-- Renew leases. A lease that ran out but that nobody took yet is renewed as well.
-- ARGV: queue, worker, lease ms, then per shard: job, shard, attempt
-- Returns 1 or 0 per shard: whether the worker still holds it (0: cancelled, or given to another)
local queue, worker, lease = unpack(ARGV, 1, 3)
local leases, draining, held = key('leases', queue), key('draining', queue), {}
prune(draining) -- first: leases must not lapse because the server is full
for n = 4, #ARGV, 3 do
  local id, shard, attempt = unpack(ARGV, n, n + 2)
  local mine = is_held(queue, id, shard, attempt)
  if mine then
    redis.call('ZADD', leases, now + lease, id .. '/' .. shard)
  else
    excuse(id, shard, attempt)
  end
  table.insert(held, mine and 1 or 0)
end
redis.call('ZADD', draining, 'XX', now + lease, worker) -- XX: the lease thread may come after the drain has ended
return held
