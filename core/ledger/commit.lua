-- Store the results of shards, each exactly once. The attempt number is the fencing token: a worker that lost its lease to
-- another can write nothing.
-- ARGV: queue, worker facts (device, engine, dtype, revision, parity or ''), then per shard: job, shard, attempt, result block ('' of
--       a dry run), dimensions, failed, tokens, truncated, inputs that came from the cache, errors (JSON list of JSON strings),
--       failed inputs by code (JSON, or '' without any)
-- Returns 1 or 0 per shard: whether it was stored
local queue = ARGV[1]
local device, engine, dtype, revision, parity = unpack(ARGV, 2, 6)
local BUCKET_SECONDS, KEPT_SECONDS = 10, 620 -- as in ledger.py: the history that the API shows, and a little more
local stored, embedded = {}, 0
for n = 7, #ARGV, 11 do
  local id, shard, attempt, block, dimensions, failed, tokens, truncated, cached, errors, codes = unpack(ARGV, n, n + 10)
  local job = key('job', id)
  local current, lane, tenant, counted = is_held(queue, id, shard, attempt)
  if current then
    redis.call('ZREM', key('leases', queue), id .. '/' .. shard)
    count_leased(queue, lane, 0 - count_of(shard))
    tally('finished:' .. queue, count_of(shard))
    if block ~= '' then
      redis.call('HSET', key('vectors', id), shard, block)
      embedded = embedded + count_of(shard) - failed
      tally('tokens:' .. queue, tokens)
      tally('cached:' .. queue, cached)
      tally('truncated:' .. queue, truncated)
      for code, inputs in pairs(codes ~= '' and cjson.decode(codes) or {}) do tally('failed:' .. queue .. ':' .. code, inputs) end
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
    if cached ~= '0' then redis.call('HINCRBY', job, 'cached', cached) end
    for _, error in ipairs(cjson.decode(errors)) do note_error(id, error) end
    settle(id, count_of(shard) - failed, failed)
  else
    excuse(id, shard, attempt)
    local repeated = redis.call('HGET', key('vectors', id), shard) == block -- of this very call, after a lost answer
    if block ~= '' and not repeated then tally('refused:' .. queue, 1) end
  end
  table.insert(stored, current and 1 or 0)
end
if embedded > 0 then
  tally('inputs:' .. queue, embedded)
  local bucket = key('throughput', math.floor(clock[1] / BUCKET_SECONDS))
  if redis.call('INCRBY', bucket, embedded) == embedded then redis.call('PEXPIRE', bucket, KEPT_SECONDS * 1000) end
end
write_counts()
return stored
