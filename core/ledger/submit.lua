-- Accept a staged job, in one step and in constant time however many shards it has. If a batch is staged with it, it is one.
-- ARGV: id, tenant, queue, lane, inputs, shards, limits (JSON: setting -> number), idempotency key or '', body digest, home and
--       fallback ('' unless the job may move), who is told of its end (JSON, see `notify`, or ''), how many arguments follow that are
--       fields of the job's record with their names, these, then the shards that are not staged: shard, input block, …
-- Returns {'accepted', wake} | {'exists', id, digest} | {'full', …} as `broken_limit` | {'limited', ms to wait}
--       | {'lost', shards found}
local id, tenant, queue, lane, inputs, shards, limits, idempotency, digest, home, fallback, told, record = unpack(ARGV, 1, 13)
local FIELDS, SHARDS = 14, 14 + record
local job = key('job', id)

if redis.call('EXISTS', job) == 1 then return {'accepted', 0} end -- a repeat of this very call
if idempotency ~= '' then
  local found = redis.call('GET', key('idempotency', tenant, idempotency))
  if found then return {'exists', string.match(found, '^(%S+) (%S+)$')} end
end
inputs, limits = tonumber(inputs), cjson.decode(limits)
local before = redis.call('GET', key('staged', id))
local coming = 0
for n = SHARDS + 1, #ARGV, 2 do coming = coming + #ARGV[n] end
local broken = broken_limit(tenant, limits, inputs, (before or 0) + coming)
if broken then return broken end
local per_minute = limits['MAX_TENANT_INPUTS_PER_MINUTE']
if per_minute then
  local granted, _, _, wait = spend('inputs', tenant, per_minute, inputs)
  if granted == 0 then return {'limited', wait} end
end
local bytes = (before or 0) + store_shards(id, SHARDS)
local staged = redis.call('LLEN', key('pending', id))
if staged ~= tonumber(shards) or redis.call('HLEN', key('inputs', id)) ~= staged then
  redis.call('UNLINK', key('inputs', id), key('pending', id), key('staged', id))
  return {'lost', staged}
end

mark_layout()
redis.call('HSET', job, 'status', 'queued', 'created_at', now, 'tenant', tenant, 'queue', queue, 'lane', lane,
  'total', inputs, 'bytes', bytes, 'counted', 'queued', unpack(ARGV, FIELDS, SHARDS - 1))
count('bytes', bytes)
count('jobs:' .. tenant, 1)
count('inputs:' .. tenant, inputs)
count('queued', 1)
tally('submitted:' .. queue, 1)
write_counts()
if before then redis.call('DEL', key('staged', id)) end
redis.call('PERSIST', key('inputs', id))
redis.call('PERSIST', key('pending', id))
if idempotency ~= '' then
  redis.call('HSET', job, 'idempotency', idempotency)
  redis.call('SET', key('idempotency', tenant, idempotency), id .. ' ' .. digest)
end
redis.call('ZADD', key('jobs', tenant), now, id)
local window = redis.call('HGET', key('batch', id), 'window_seconds')
if window then
  for _, kind in ipairs({'batch', 'lines'}) do redis.call('PERSIST', key(kind, id)) end
  redis.call('HSET', key('batch', id), 'created_at', now, 'deadline', now + window * 1000)
  redis.call('ZADD', key('batches', tenant), now, id)
  redis.call('ZADD', key('deadlines'), now + window * 1000, id)
end
if told ~= '' then redis.call('HSET', job, 'notify', told) end
if home ~= '' then
  redis.call('HSET', job, 'home', home, 'fallback', fallback)
  redis.call('ZADD', key('auto', queue), now, id)
end
line_up(id, queue, lane, tenant, false)
add_waiting(queue, lane, inputs)
sweep(10) -- more than this adds, so the indexes cannot outgrow what lives
return {'accepted', wants_wake(queue)}
