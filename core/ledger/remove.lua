-- Cancel a live job or delete an ended one.
-- ARGV: id, tenant, token of this very call: its repeat after a lost reply must not delete what it cancelled
-- Returns 'cancelled' | 'deleted' | 'unknown'
local id, tenant, token = unpack(ARGV)
local record = redis.call('HMGET', key('job', id), 'status', 'tenant', 'queue', 'lane', 'cancelled_by', 'home', 'fallback')
if not record[1] or record[2] ~= tenant then return 'unknown' end
if record[5] == token then return 'cancelled' end
if not is_live(record[1]) then
  erase(id, tenant)
  return 'deleted'
end
local queue, lane, waiting = record[3], record[4], 0
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
local claimed_from = record[6] and {record[6], record[7]} or {queue}
for _, shard in ipairs(redis.call('HKEYS', key('attempts', id))) do
  for _, at in ipairs(claimed_from) do redis.call('ZREM', key('leases', at), id .. '/' .. shard) end
end
redis.call('HSET', key('job', id), 'cancelled_by', token)
finish(id, 'cancelled')
write_counts()
return 'cancelled'
