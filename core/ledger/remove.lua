-- Cancel a live job or delete an ended one.
-- ARGV: id, tenant, token of this very call: its repeat after a lost reply must not delete what it cancelled
-- Returns 'cancelled' | 'deleted' | 'unknown'
local id, tenant, token = unpack(ARGV)
local record = redis.call('HMGET', key('job', id), 'status', 'tenant', 'cancelled_by')
if not record[1] or record[2] ~= tenant then return 'unknown' end
if record[3] == token then return 'cancelled' end
if not is_live(record[1]) then
  erase(id, tenant)
  return 'deleted'
end
cancel(id)
redis.call('HSET', key('job', id), 'cancelled_by', token)
write_counts()
return 'cancelled'
