-- Accept a staged job, in one step and in constant time however many shards it has.
-- ARGV: id, tenant, queue, lane, inputs, shards, max waiting inputs, idempotency key or '', body digest, home and fallback (''
--       unless the job may move), four fields of the job's record with their names, then the shards that are not staged: shard,
--       input block, …
-- Returns {'accepted', wake} | {'exists', id, digest} | {'full', waiting inputs} | {'lost', shards found}
local id, tenant, queue, lane, inputs, shards, max_waiting, idempotency, digest, home, fallback = unpack(ARGV, 1, 11)
local FIELDS, SHARDS = 12, 20
local job = key('job', id)

if redis.call('EXISTS', job) == 1 then return {'accepted', 0} end -- a repeat of this very call
if idempotency ~= '' then
  local found = redis.call('GET', key('idempotency', tenant, idempotency))
  if found then return {'exists', string.match(found, '^(%S+) (%S+)$')} end
end
local waiting = 0
for _, n in ipairs(redis.call('HVALS', key('waiting'))) do waiting = waiting + n end
if waiting + inputs > tonumber(max_waiting) then return {'full', waiting} end
store_shards(id, SHARDS)
local staged = redis.call('LLEN', key('pending', id))
if staged ~= tonumber(shards) or redis.call('HLEN', key('inputs', id)) ~= staged then
  redis.call('UNLINK', key('inputs', id), key('pending', id))
  return {'lost', staged}
end

redis.call('HSET', job, 'status', 'queued', 'created_at', now, 'tenant', tenant, 'queue', queue, 'lane', lane,
  'total', inputs, unpack(ARGV, FIELDS, SHARDS - 1))
redis.call('PERSIST', key('inputs', id))
redis.call('PERSIST', key('pending', id))
if idempotency ~= '' then
  redis.call('HSET', job, 'idempotency', idempotency)
  redis.call('SET', key('idempotency', tenant, idempotency), id .. ' ' .. digest)
end
redis.call('ZADD', key('jobs', tenant), now, id)
if home ~= '' then
  redis.call('HSET', job, 'home', home, 'fallback', fallback)
  redis.call('ZADD', key('auto', queue), now, id)
end
line_up(id, queue, lane, tenant, false)
add_waiting(queue, lane, inputs)
sweep(10) -- more than this adds, so the indexes cannot outgrow what lives
return {'accepted', wants_wake(queue)}
