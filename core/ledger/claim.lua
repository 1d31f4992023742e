-- Take shards of one queue for a worker. Every shard gets a lease and its next attempt number before any work is done on it.
-- ARGV: queue, worker, lease ms, most bytes of input blocks, lane ('interactive', 'bulk' or '' for what is due)
-- Returns {wake, alone, deaths of that one (JSON), lane, job, shard, attempt, model, tenant, ms since the job came if it begins now, options,
--          traceparent, input block, job, …}; of one lane
local queue, worker, lease, max_bytes, only = unpack(ARGV)
lease, max_bytes = tonumber(lease), tonumber(max_bytes)
local leases, suspects = key('leases', queue), key('suspects', queue)
local HEAD = 4
local MOST_TAKEN = HEAD + 9 * 1000 -- shards of one claim, however small they are: Redis answers nobody else meanwhile

-- 1. What workers held that died since.
recover(queue)

local RECORD = {'status', 'lane', 'options', 'model', 'tenant', 'counted', 'created_at', 'traceparent'}
local taken = {0, 0, '', ''}
local function take(id, shard, record, block)
  local attempt = redis.call('HINCRBY', key('attempts', id), shard, 1)
  redis.call('ZADD', leases, now + lease, id .. '/' .. shard)
  add_waiting(queue, record[2], -count_of(shard))
  if record[1] == 'queued' then redis.call('HSET', key('job', id), 'status', 'running', 'started_at', now) end
  if record[6] ~= 'running' then -- else it is counted already; a job of an older version is from now on
    redis.call('HSET', key('job', id), 'counted', 'running')
    if record[6] then count(record[6], -1) end
    count('running', 1)
  end
  count_leased(queue, record[2], count_of(shard))
  if attempt > 1 then tally('retried:' .. queue, 1) end
  taken[4] = record[2]
  local waited = record[1] == 'queued' and math.max(0, now - record[7]) or ''
  local parts = {id, shard, attempt, record[4], record[5], waited, record[3], record[8] or '', block}
  for _, value in ipairs(parts) do table.insert(taken, value) end
end

-- 2. A suspect goes alone, so that it can harm nobody: not to a worker that asks for one lane, as it holds other shards.
while #taken == HEAD and only == '' do
  local member = redis.call('LPOP', suspects)
  if not member then break end
  local id, shard = split(member)
  local record = redis.call('HMGET', key('job', id), unpack(RECORD))
  local block = is_live(record[1]) and redis.call('HGET', key('inputs', id), shard)
  if block then
    take(id, shard, record, block)
    redis.call('HSETNX', key('deaths', id), shard, '{}') -- layout 1 had none
    taken[2], taken[3] = 1, redis.call('HGET', key('deaths', id), shard)
  end
end

-- 3. Else shards up to the budget, interactive before bulk but for every fourth claim. Tenants of a lane take turns.
local order, claims = {only}, 'claims:' .. queue
if only == '' then
  local bulk_first = (redis.call('HGET', key('counters'), claims) or 0) % 4 == 3
  order = bulk_first and {'bulk', 'interactive'} or {'interactive', 'bulk'}
end
local bytes = 0
for _, lane in ipairs(order) do
  if #taken > HEAD then break end
  local tenants = key('tenants', queue, lane)
  while taken[2] == 0 and bytes < max_bytes and #taken < MOST_TAKEN do
    local tenant = redis.call('LINDEX', tenants, 0)
    if not tenant then break end
    local line = key('line', queue, lane, tenant)
    local id = redis.call('LINDEX', line, 0)
    local record = redis.call('HMGET', key('job', id), unpack(RECORD))
    local shard = is_live(record[1]) and redis.call('LINDEX', key('pending', id), 0)
    local block = shard and redis.call('HGET', key('inputs', id), shard)
    if block and bytes > 0 and bytes + #block > max_bytes then
      bytes = max_bytes -- the next shard no longer fits
    else
      if block then
        redis.call('LPOP', key('pending', id))
        take(id, shard, record, block)
        bytes = bytes + #block
      end
      if not block or redis.call('EXISTS', key('pending', id)) == 0 then redis.call('LPOP', line) end
      redis.call('LPOP', tenants)
      if redis.call('EXISTS', line) == 1 then redis.call('RPUSH', tenants, tenant) end
    end
  end
end

-- 4. Who is at work is known, until `release`, so that messages go out for idle workers only. A claim that finds nothing writes
-- nothing: it waits for no disk.
if #taken > HEAD then
  if only == '' then redis.call('HINCRBY', key('counters'), claims, 1) end
  if redis.call('ZADD', key('draining', queue), now + lease, worker) == 1 then redis.call('DEL', key('wake', queue)) end
  taken[1] = wants_wake(queue)
end
write_counts()
return taken
