-- Cancel a live job or delete an ended one.
-- ARGV: id, tenant, token of this very call: its repeat after a lost reply must not delete what it cancelled; how many errors to
-- return; 1 to cancel only
-- Returns {'deleted' | 'unknown'}, or, with the job as it is then, which the next moment may be gone:
-- {'cancelled' | 'ended' (only asked to cancel), its record, its first errors}
local id, tenant, token, shown_errors, cancel_only = unpack(ARGV)
local status, owner, cancelled_by = unpack(redis.call('HMGET', key('job', id), 'status', 'tenant', 'cancelled_by'))
if not status or owner ~= tenant then return {'unknown'} end

local function with_job(outcome)
  return {outcome, redis.call('HGETALL', key('job', id)), redis.call('LRANGE', key('errors', id), 0, shown_errors - 1)}
end

if cancelled_by == token then return with_job('cancelled') end
if is_live(status) then
  cancel(id)
  redis.call('HSET', key('job', id), 'cancelled_by', token)
  write_counts()
  return with_job('cancelled')
end
if cancel_only == '1' then return with_job('ended') end
erase(id, tenant)
return {'deleted'}
