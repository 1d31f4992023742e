-- Cancel a live job or delete an ended one.
-- ARGV: id, tenant, token of this very call: its repeat after a lost reply must not delete what it cancelled; 1 to cancel only
-- Returns 'cancelled' | 'deleted' | 'ended' (only asked to cancel) | 'unknown'
local id, tenant, token, cancel_only = unpack(ARGV)
local status, owner, cancelled_by = unpack(redis.call('HMGET', key('job', id), 'status', 'tenant', 'cancelled_by'))
if not status or owner ~= tenant then return 'unknown' end
if cancelled_by == token then return 'cancelled' end
if is_live(status) then
  cancel(id)
  redis.call('HSET', key('job', id), 'cancelled_by', token)
  write_counts()
  return 'cancelled'
end
if cancel_only == '1' then return 'ended' end
erase(id, tenant)
return 'deleted'
