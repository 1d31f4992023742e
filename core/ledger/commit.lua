-- Store the results of shards, each exactly once. The attempt number is the fencing token: a worker that lost its lease to
-- another can write nothing.
-- ARGV: queue, worker facts (device, engine, dtype, revision, parity or ''), then per shard: job, shard, attempt, result block ('' of
--       a dry run), dimensions, failed, tokens, truncated, inputs that came from the cache, errors (JSON list of JSON strings)
-- Returns 1 or 0 per shard: whether it was stored
local queue = ARGV[1]
local device, engine, dtype, revision, parity = unpack(ARGV, 2, 6)
local stored = {}
for n = 7, #ARGV, 10 do
  local id, shard, attempt, block, dimensions, failed, tokens, truncated, cached, errors = unpack(ARGV, n, n + 9)
  local job = key('job', id)
  local current, tenant, counted = is_held(queue, id, shard, attempt)
  if current then
    redis.call('ZREM', key('leases', queue), id .. '/' .. shard)
    if block ~= '' then
      redis.call('HSET', key('vectors', id), shard, block)
      redis.call('HINCRBY', key('counters'), 'inputs:' .. queue, count_of(shard))
      redis.call('HINCRBY', key('counters'), 'tokens:' .. queue, tokens)
    end
    if counted then
      shrink(id, redis.call('HSTRLEN', key('inputs', id), shard))
      count('inputs:' .. tenant, 0 - count_of(shard))
    end
    redis.call('HDEL', key('inputs', id), shard)
    redis.call('HDEL', key('attempts', id), shard)
    redis.call('HDEL', key('deaths', id), shard)
    redis.call('HSET', job, 'device', device, 'engine', engine, 'dtype', dtype, 'revision', revision, 'dimensions', dimensions)
    local worst = redis.call('HGET', job, 'parity') -- of all workers that had a part in the job
    if parity ~= '' and not (worst and tonumber(worst) <= tonumber(parity)) then redis.call('HSET', job, 'parity', parity) end
    redis.call('HINCRBY', job, 'tokens', tokens)
    redis.call('HINCRBY', job, 'truncated', truncated)
    if cached ~= '0' then
      redis.call('HINCRBY', job, 'cached', cached)
      if block ~= '' then redis.call('HINCRBY', key('counters'), 'cached:' .. queue, cached) end
    end
    for _, error in ipairs(cjson.decode(errors)) do note_error(id, error) end
    settle(id, count_of(shard) - failed, failed)
  else
    excuse(id, shard, attempt)
  end
  table.insert(stored, current and 1 or 0)
end
write_counts()
return stored
