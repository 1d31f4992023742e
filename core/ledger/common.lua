-- Shared by every script of the ledger; `core/ledger/__init__.py` maps the keys.
-- A script may build key names from the prefix: the ledger lives on one Redis, not on a Redis Cluster.
local prefix = KEYS[1]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000) -- milliseconds

local function key(...) return prefix .. table.concat({...}, ':') end

-- The layout of the keys. One that is newer than this code is not touched, an older one is worked off; `core/ledger/__init__.py`
-- tells what has changed.
local LAYOUT = 2
local layout = tonumber(redis.call('GET', key('version')) or 1)
if layout > LAYOUT then return redis.error_reply('-NEWERLAYOUT ' .. layout) end

local function mark_layout()
  if layout < LAYOUT then redis.call('SET', key('version'), LAYOUT) end
end

local function count_of(shard) return tonumber(string.match(shard, '%+(%d+)$')) end

-- "<job>/<shard>" to job, shard; "<job>/<tenant>" to job, tenant
local function split(member) return string.match(member, '^([^/]+)/(.*)$') end

local function is_live(status) return status == 'queued' or status == 'running' end

-- Whether the worker that was given this attempt still holds the shard: not cancelled, not given to another. An attempt's number
-- is the fence: it grows with every claim and comes only once, whatever became of those before. Then returns also the
-- job's lane and tenant, and its bytes, which a job of an older version does not have: it is not counted.
local function is_held(queue, id, shard, attempt)
  if redis.call('HGET', key('attempts', id), shard) ~= attempt
    or not redis.call('ZSCORE', key('leases', queue), id .. '/' .. shard) then return false end
  local status, lane, tenant, bytes = unpack(redis.call('HMGET', key('job', id), 'status', 'lane', 'tenant', 'bytes'))
  return is_live(status), lane, tenant, bytes
end

-- What still needs its vectors, waiting or being embedded, is counted in `live` for the limits: bytes of all, jobs and inputs of
-- each tenant; and for those who watch: queued and running jobs. Totals are in `counters`. Changes are collected and written once,
-- at the end of a script: `write_counts`.
local counts, totals, shrunk = {}, {}, {} -- by field, by field; bytes that a job has lost, by its id

local function count(field, n) counts[field] = (counts[field] or 0) + n end

local function tally(field, n) totals[field] = (totals[field] or 0) + n end

-- Inputs have come under a lease (or, negative, left it): in `live` only those of the interactive lane are told from the rest.
local function count_leased(queue, lane, inputs)
  if lane == 'interactive' then count('interactive:' .. queue, inputs) end
end

-- A job has lost (or won) input blocks of so many bytes.
local function shrink(id, bytes)
  shrunk[id] = (shrunk[id] or 0) + bytes
  count('bytes', 0 - bytes)
end

local function write_counts()
  for id, bytes in pairs(shrunk) do redis.call('HINCRBY', key('job', id), 'bytes', 0 - bytes) end
  local none = {}
  for field, n in pairs(counts) do
    -- Without a lease no input is under one, whatever an older version, which does not count them, has done to leases.
    local queue = string.match(field, '^interactive:(.*)$')
    local over = queue and redis.call('EXISTS', key('leases', queue)) == 0
    if over or n ~= 0 and redis.call('HINCRBY', key('live'), field, n) == 0 then table.insert(none, field) end
  end
  if none[1] then redis.call('HDEL', key('live'), unpack(none)) end
  for field, n in pairs(totals) do
    if n ~= 0 then redis.call('HINCRBY', key('counters'), field, n) end
  end
  counts, totals, shrunk = {}, {}, {}
end

-- The first limit that a job of so many inputs and bytes would break, or nil:
-- {'full', setting, what is there, inputs that have to end before the job fits, 1 if it never will}
local function broken_limit(tenant, limits, inputs, bytes)
  local waiting = 0
  for _, n in ipairs(redis.call('HVALS', key('waiting'))) do waiting = waiting + n end
  local more = limits['MAX_WAITING_BYTES'] or limits['MAX_TENANT_INPUTS'] or limits['MAX_TENANT_JOBS']
  local live = more and redis.call('HMGET', key('live'), 'bytes', 'jobs:' .. tenant, 'inputs:' .. tenant) or {}
  local held, jobs, own = tonumber(live[1] or 0), tonumber(live[2] or 0), tonumber(live[3] or 0)
  local function broken(setting, found, more, inputs_each)
    local over = limits[setting] and found + more - limits[setting] or 0
    if over > 0 then return {'full', setting, found, math.ceil(over * inputs_each), more > limits[setting] and 1 or 0} end
  end
  return broken('MAX_WAITING_INPUTS', waiting, inputs, 1)
    or broken('MAX_WAITING_BYTES', held, bytes, waiting / math.max(1, held))
    or broken('MAX_TENANT_INPUTS', own, inputs, 1)
    or broken('MAX_TENANT_JOBS', jobs, 1, own / math.max(1, jobs))
end

-- Take from what a tenant may use in a minute. It comes back evenly, so all that is kept is the time when it is whole again (the
-- generic cell rate algorithm). What costs more than all of it is granted when it is whole, and is then paid off for longer.
-- Returns granted (1 or 0), what is left, ms until it is whole, ms until the same would be granted
local function spend(kind, tenant, per_minute, cost)
  local name, each = key('rate', kind, tenant), 60000 / per_minute
  local whole = math.max(now, tonumber(redis.call('GET', name) or 0))
  local after = whole + cost * each
  local wait = math.max(0, math.min(whole - now, after - now - 60000))
  if wait == 0 and cost > 0 then
    redis.call('SET', name, string.format('%.6f', after), 'PX', math.ceil(after - now))
    whole = after
  end
  local left = math.max(0, math.floor((now + 60000 - whole) / each + 0.000001))
  return wait == 0 and 1 or 0, left, math.ceil(whole - now), math.ceil(wait)
end

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

-- Store a job's shards from ARGV[first] on: shard, input block, shard, … Returns the bytes of those that are new
local function store_shards(id, first)
  local bytes = 0
  for n = first, #ARGV, 2 do
    local shard, block = ARGV[n], ARGV[n + 1]
    if redis.call('HSET', key('inputs', id), shard, block) == 1 then
      redis.call('RPUSH', key('pending', id), shard)
      bytes = bytes + #block
    end
  end
  return bytes
end

-- Take a job out of its lane. It begins with what needs no memory, so that a full server does it all the same.
local function leave_line(id, queue, lane, tenant)
  local line = key('line', queue, lane, tenant)
  redis.call('LREM', line, 1, id)
  if redis.call('EXISTS', line) == 0 then redis.call('LREM', key('tenants', queue, lane), 1, tenant) end
end

-- A shard was in flight when its worker died, or so it seems. From now on it is a suspect and is handed out alone, in the queue
-- where its job waits now. One that was a suspect already was alone, so this death is held against it.
-- `deaths` has for each suspect how its attempts ended: {"3": "died", "5": "hung", "6": "excused"}
local function suspect(id, shard, fate)
  local lane, queue = unpack(redis.call('HMGET', key('job', id), 'lane', 'queue'))
  local found = redis.call('HGET', key('deaths', id), shard)
  local fates = '{}'
  if found then
    local ended = cjson.decode(found)
    ended[redis.call('HGET', key('attempts', id), shard) or ''] = fate
    fates = cjson.encode(ended)
  end
  redis.call('HSET', key('deaths', id), shard, fates)
  redis.call('HINCRBY', key('counters'), 'recovered', 1)
  redis.call('RPUSH', key('suspects', queue), id .. '/' .. shard)
  add_waiting(queue, lane, count_of(shard))
end

-- A process that still knows of an attempt whose lease ran out has not died of it: it or Redis stood still, or they could not
-- reach each other. Not for ever, so that a text which keeps every process busy for longer than its lease comes to an end.
local MOST_EXCUSED = 10
local function excuse(id, shard, attempt)
  local found = redis.call('HGET', key('deaths', id), shard)
  if not found then return end
  local fates, excused = cjson.decode(found), 0
  for _, fate in pairs(fates) do excused = excused + (fate == 'excused' and 1 or 0) end
  if fates[attempt] == 'died' and excused < MOST_EXCUSED then
    fates[attempt] = 'excused'
    redis.pcall('HSET', key('deaths', id), shard, cjson.encode(fates)) -- a full server may refuse: then the death stands
  end
end

-- Leases that ran out: nobody has renewed them.
local function recover(queue)
  local leases = key('leases', queue)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, 100)) do
    redis.call('ZREM', leases, member)
    local id, shard = split(member)
    local status, lane = unpack(redis.call('HMGET', key('job', id), 'status', 'lane'))
    count_leased(queue, lane, 0 - count_of(shard))
    if is_live(status) and redis.call('HEXISTS', key('inputs', id), shard) == 1 then suspect(id, shard, 'died') end
  end
end

local function job_keys(id)
  return key('job', id), key('inputs', id), key('pending', id), key('attempts', id), key('deaths', id), key('vectors', id),
    key('errors', id), key('batch', id), key('lines', id)
end

-- The names of the two files that a batch has when it has ended: job_<hex> has file-output-<hex> and file-error-<hex>.
local function files_of(id)
  local hex = string.gsub(id, '^job_', '')
  return 'file-output-' .. hex, 'file-error-' .. hex
end

-- The objects of a job in the result store are for a worker to remove: at once, and again when what a worker that lost its lease was
-- about to write must have arrived.
local LATE_WRITES = 10 * 60 * 1000
local function remove_objects(id)
  if redis.call('SREM', key('stored'), id) == 1 then
    redis.call('ZADD', key('garbage'), now, id .. '/first', now + LATE_WRITES, id .. '/again')
  end
end

-- Remove an ended job and every trace of it; also a batch that failed, which never had a job.
local function erase(id, tenant)
  local idempotency = redis.call('HGET', key('job', id), 'idempotency')
  if idempotency then redis.call('DEL', key('idempotency', tenant, idempotency)) end
  redis.call('UNLINK', job_keys(id))
  redis.call('ZREM', key('jobs', tenant), id)
  redis.call('ZREM', key('batches', tenant), id)
  redis.call('ZREM', key('files', tenant), files_of(id))
  redis.call('ZREM', key('expiring'), id .. '/' .. tenant)
  remove_objects(id)
end

-- Ended jobs whose lifetime is over leave the indexes; their own keys have expired by themselves.
local function sweep(limit)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', key('expiring'), '-inf', now, 'LIMIT', 0, limit)) do erase(split(member)) end
end

-- Tell of an event: `targets` has the names of those that want each kind, {"job.failed": ["hooks.example.com#1a2b3c4d"]}. Each gets a
-- delivery, which an API process sends, and which does not need the job any more. Beyond so many that wait for one target, and
-- so many that a tenant's log shows, nothing is kept.
local LOGGED = 7 * 24 * 60 * 60 * 1000
local MOST_LOGGED, MOST_WAITING = 1000, 100000
local function notify(id, tenant, targets, event)
  local log = key('deliveries', tenant)
  for _, target in ipairs(cjson.decode(targets)[event] or {}) do
    local delivery, due = id .. '/' .. target, key('due', tenant, target)
    local record = key('delivery', delivery)
    redis.call('HSET', record, 'event', event, 'created_at', now, 'tries', 0, 'state', 'waiting')
    redis.call('PEXPIRE', record, LOGGED)
    if redis.call('ZCARD', due) < MOST_WAITING then
      redis.call('ZADD', due, now, delivery)
      redis.call('PEXPIRE', due, LOGGED)
    else
      redis.call('HSET', record, 'state', 'given_up', 'answer', 'too_many_wait', 'ended_at', now)
    end
    redis.call('ZADD', log, now, delivery)
  end
  redis.call('ZREMRANGEBYSCORE', log, '-inf', now - LOGGED)
  for _, delivery in ipairs(redis.call('ZRANGE', log, 0, -1 - MOST_LOGGED)) do
    redis.call('ZREM', log, delivery)
    if redis.call('HGET', key('delivery', delivery), 'state') ~= 'waiting' then redis.call('UNLINK', key('delivery', delivery)) end
  end
  redis.call('PEXPIRE', log, LOGGED)
end

-- What an end is called. A batch is completed even if none of its lines has vectors: they are then in its file of errors.
local function event_of(id, status, lapsed)
  if redis.call('EXISTS', key('batch', id)) == 0 then return 'job.' .. status end
  if status ~= 'cancelled' then return 'batch.completed' end
  return lapsed and 'batch.expired' or 'batch.cancelled'
end

-- A batch ends with its job, and has two files from then on.
local function end_batch(id, tenant, ended, expires)
  for _, kind in ipairs({'batch', 'lines'}) do redis.call('PEXPIREAT', key(kind, id), expires) end
  local output, error = files_of(id)
  redis.call('ZADD', key('files', tenant), ended, output, ended, error)
end

-- End a job: its result lives for ttl_seconds from now, what was to be computed is dropped. `lapsed`: a batch is cancelled as its
-- completion window is over.
local function finish(id, status, lapsed)
  local job = key('job', id)
  local found = redis.call('HMGET', job, 'tenant', 'ttl_seconds', 'idempotency', 'queue', 'home', 'bytes', 'total', 'done', 'failed',
    'notify', 'counted')
  local expires = now + found[2] * 1000
  redis.call('HSET', job, 'status', status, 'ended_at', now, 'expires_at', expires)
  if found[6] then
    count('bytes', (shrunk[id] or 0) - found[6])
    count('inputs:' .. found[1], (found[8] or 0) + (found[9] or 0) - found[7])
    count('jobs:' .. found[1], -1)
    shrunk[id] = nil
  end
  if found[11] then count(found[11], -1) end
  tally('ended:' .. status, 1)
  redis.call('UNLINK', key('inputs', id), key('pending', id), key('attempts', id), key('deaths', id))
  for _, kind in ipairs({'job', 'vectors', 'errors'}) do redis.call('PEXPIREAT', key(kind, id), expires) end
  if redis.call('ZREM', key('deadlines'), id) == 1 then end_batch(id, found[1], now, expires) end
  if found[3] then redis.call('PEXPIREAT', key('idempotency', found[1], found[3]), expires) end
  if found[5] then redis.call('ZREM', key('auto', found[4]), id) end
  redis.call('ZADD', key('expiring'), expires, id .. '/' .. found[1])
  if found[10] then notify(id, found[1], found[10], event_of(id, status, lapsed)) end
  redis.call('PUBLISH', key('ended'), id)
end

-- Cancel a live job: what waits of it leaves the queue, and nobody holds what is being embedded any more.
local function cancel(id, lapsed)
  local tenant, queue, lane, home, fallback =
    unpack(redis.call('HMGET', key('job', id), 'tenant', 'queue', 'lane', 'home', 'fallback'))
  local waiting = 0
  leave_line(id, queue, lane, tenant)
  for _, shard in ipairs(redis.call('LRANGE', key('pending', id), 0, -1)) do waiting = waiting + count_of(shard) end
  for _, member in ipairs(redis.call('LRANGE', key('suspects', queue), 0, -1)) do
    local owner, shard = split(member)
    if owner == id then
      redis.call('LREM', key('suspects', queue), 1, member)
      waiting = waiting + count_of(shard)
    end
  end
  add_waiting(queue, lane, 0 - waiting) -- not -waiting: Redis 6 does not take Lua's -0
  local claimed_from = home and {home, fallback} or {queue}
  for _, shard in ipairs(redis.call('HKEYS', key('attempts', id))) do
    for _, at in ipairs(claimed_from) do
      if redis.call('ZREM', key('leases', at), id .. '/' .. shard) == 1 then count_leased(at, lane, 0 - count_of(shard)) end
    end
  end
  finish(id, 'cancelled', lapsed)
end

-- Batches whose completion window is over are cancelled. The deadline is noted first, as `finish` drops it.
local function lapse(limit)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('deadlines'), '-inf', now, 'LIMIT', 0, limit)) do
    if is_live(redis.call('HGET', key('job', id), 'status')) then
      cancel(id, true)
      redis.call('HSET', key('batch', id), 'expired', 1)
    else -- a worker of layout 1, which knows no batches, ended the job
      redis.call('ZREM', key('deadlines'), id)
      local tenant, ended, expires = unpack(redis.call('HMGET', key('job', id), 'tenant', 'ended_at', 'expires_at'))
      local owner = redis.call('HGET', key('batch', id), 'tenant')
      if expires then end_batch(id, tenant, ended, expires) elseif owner then erase(id, owner) end
    end
  end
end

-- Remove a file, or what came of one whose upload broke off. Returns whether there was any.
local function forget_file(id, tenant)
  local member = id .. '/' .. tenant
  local bytes = redis.call('HGET', key('sizes'), member)
  if not bytes then return false end -- another tenant's
  redis.call('ZREM', key('uploads'), member)
  redis.call('ZREM', key('files', tenant), id)
  redis.call('UNLINK', key('file', id), key('content', id))
  redis.call('HDEL', key('sizes'), member)
  count('files', 0 - bytes)
  count('files:' .. tenant, 0 - bytes)
  return true
end

local function sweep_files(limit)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', key('uploads'), '-inf', now, 'LIMIT', 0, limit)) do
    redis.call('ZREM', key('uploads'), member)
    forget_file(split(member))
  end
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

-- Whether the caller should send `embed_pending(queue)`: work waits, a worker is free, and no message is on its way. Workers that
-- have just run out of work listen for a moment: the bell reaches them sooner than a message. A listener may be dead and its
-- connection not yet closed, so the workers' timers ask `unheard` and get a message all the same.
-- The token keeps a burst of submits from sending one message each; a lost message costs at most its second.
local function wants_wake(queue, unheard)
  local draining, workers = prune(key('draining', queue)), prune(key('workers', queue))
  if waiting_inputs(queue) <= 0 and not redis.call('ZRANGEBYSCORE', key('leases', queue), '-inf', now, 'LIMIT', 0, 1)[1] then
    return 0
  end
  if redis.call('PUBLISH', key('bell', queue), '') > 0 and not unheard then return 0 end
  if draining >= math.max(1, workers) then return 0 end
  if redis.call('LLEN', key('celery', queue)) > 0 then return 0 end
  return redis.call('SET', key('wake', queue), now, 'NX', 'PX', 1000) and 1 or 0
end
