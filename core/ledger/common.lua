-- Shared by every script of the ledger; `core/ledger/__init__.py` maps the keys.
-- A script may build key names from the prefix: the ledger lives on one Redis, not on a Redis Cluster.
local prefix = KEYS[1]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000) -- milliseconds

local function key(...) return prefix .. table.concat({...}, ':') end

local function count_of(shard) return tonumber(string.match(shard, '%+(%d+)$')) end

-- "<job>/<shard>" to job, shard; "<job>/<tenant>" to job, tenant
local function split(member) return string.match(member, '^([^/]+)/(.*)$') end

local function is_live(status) return status == 'queued' or status == 'running' end

local function add_waiting(queue, lane, inputs)
  redis.call('HINCRBY', key('waiting'), queue .. ':' .. lane, inputs)
end

-- Put a job whose pending list has just become non-empty into its lane; `front` for shards that were given back.
local function line_up(id, queue, lane, tenant, front)
  local line = key('line', queue, lane, tenant)
  if redis.call(front and 'LPUSH' or 'RPUSH', line, id) == 1 then
    redis.call('RPUSH', key('tenants', queue, lane), tenant)
  end
end

local function job_keys(id)
  return key('job', id), key('inputs', id), key('pending', id), key('attempts', id), key('vectors', id), key('errors', id)
end

-- Remove an ended job and every trace of it. Its objects in the result store are for a worker to remove: at once, and again when
-- what a worker that lost its lease was about to write must have arrived.
local LATE_WRITES = 10 * 60 * 1000
local function erase(id, tenant)
  local idempotency = redis.call('HGET', key('job', id), 'idempotency')
  if idempotency then redis.call('DEL', key('idempotency', tenant, idempotency)) end
  redis.call('UNLINK', job_keys(id))
  redis.call('ZREM', key('jobs', tenant), id)
  redis.call('ZREM', key('expiring'), id .. '/' .. tenant)
  if redis.call('SREM', key('stored'), id) == 1 then
    redis.call('ZADD', key('garbage'), now, id .. '/first', now + LATE_WRITES, id .. '/again')
  end
end

-- Ended jobs whose lifetime is over leave the indexes; their own keys have expired by themselves.
local function sweep(limit)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', key('expiring'), '-inf', now, 'LIMIT', 0, limit)) do erase(split(member)) end
end

-- End a job: its result lives for ttl_seconds from now, what was to be computed is dropped.
local function finish(id, status)
  local job = key('job', id)
  local found = redis.call('HMGET', job, 'tenant', 'ttl_seconds', 'idempotency')
  local expires = now + found[2] * 1000
  redis.call('HSET', job, 'status', status, 'ended_at', now, 'expires_at', expires)
  redis.call('UNLINK', key('inputs', id), key('pending', id), key('attempts', id))
  for _, name in ipairs({job, key('vectors', id), key('errors', id)}) do redis.call('PEXPIREAT', name, expires) end
  if found[3] then redis.call('PEXPIREAT', key('idempotency', found[1], found[3]), expires) end
  redis.call('ZADD', key('expiring'), expires, id .. '/' .. found[1])
  redis.call('PUBLISH', key('ended'), id)
end

-- Count inputs as ended; ends the job with the last of them. Returns whether it did.
local function settle(id, done, failed)
  local job = key('job', id)
  local all_done = redis.call('HINCRBY', job, 'done', done)
  local all_failed = redis.call('HINCRBY', job, 'failed', failed)
  if all_done + all_failed < tonumber(redis.call('HGET', job, 'total')) then return false end
  finish(id, all_done > 0 and 'succeeded' or 'failed')
  return true
end

-- Note why an input failed; the job's record shows the first 100.
local function note_error(id, error)
  local errors = key('errors', id)
  if redis.call('LLEN', errors) < 100 then redis.call('RPUSH', errors, error) end
end

-- Forget workers whose time is over; returns how many are left in the sorted set. It needs no memory, so a script that begins
-- with it runs on a full server too: Redis refuses those whose first write may take memory.
local function prune(name)
  redis.call('ZREMRANGEBYSCORE', name, '-inf', now)
  return redis.call('ZCARD', name)
end

local function waiting_inputs(queue)
  local found = redis.call('HMGET', key('waiting'), queue .. ':interactive', queue .. ':bulk')
  return tonumber(found[1] or 0) + tonumber(found[2] or 0)
end

-- Whether the caller should send `embed_pending(queue)`: work waits, a worker is free, and no message is on its way. A worker that
-- has just run out of work listens for a moment; the bell reaches it sooner than a message.
-- The token keeps a burst of submits from sending one message each; a lost message costs at most its second.
local function wants_wake(queue)
  local draining, workers = prune(key('draining', queue)), prune(key('workers', queue))
  if waiting_inputs(queue) <= 0 and not redis.call('ZRANGEBYSCORE', key('leases', queue), '-inf', now, 'LIMIT', 0, 1)[1] then
    return 0
  end
  if prune(key('listening', queue)) > 0 then
    redis.call('ZPOPMIN', key('listening', queue))
    redis.call('RPUSH', key('bell', queue), 1)
    redis.call('PEXPIRE', key('bell', queue), 1000)
    return 0
  end
  if draining >= math.max(1, workers) then return 0 end
  if redis.call('LLEN', key('celery', queue)) > 0 then return 0 end
  return redis.call('SET', key('wake', queue), now, 'NX', 'PX', 1000) and 1 or 0
end
