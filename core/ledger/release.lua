-- Give shards back unharmed (a worker that stops in good order): nothing is held against them, and they go first.
-- ARGV: queue, worker, then per shard: job, shard, attempt
local queue, worker = ARGV[1], ARGV[2]
for n = #ARGV - 2, 3, -3 do -- backwards: each goes to the front
  local id, shard, attempt = unpack(ARGV, n, n + 2)
  local record = redis.call('HMGET', key('job', id), 'status', 'lane', 'tenant', 'queue')
  local waits = record[4] -- the job may have been moved meanwhile
  if is_live(record[1]) and redis.call('HGET', key('attempts', id), shard) == attempt
    and redis.call('ZREM', key('leases', queue), id .. '/' .. shard) == 1 then
    if redis.call('HEXISTS', key('deaths', id), shard) == 1 then
      redis.call('LPUSH', key('suspects', waits), id .. '/' .. shard)
    elseif redis.call('LPUSH', key('pending', id), shard) == 1 then
      line_up(id, waits, record[2], record[3], true)
    end
    add_waiting(waits, record[2], count_of(shard))
    count_leased(queue, record[2], 0 - count_of(shard))
  else
    excuse(id, shard, attempt)
  end
end
write_counts()
redis.call('ZREM', key('draining', queue), worker)
redis.call('DEL', key('wake', queue))
return wants_wake(queue)
