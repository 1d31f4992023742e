-- Tell what came of a try to deliver.
-- ARGV: delivery, tenant, target, number of the try, 'delivered' | 'given_up' | 'waiting', answer, ms until the next try
-- Returns 1, or 0 when the delivery has ended before, or a later try has begun and this one did not succeed
local id, tenant, target, try, state, answer, wait = unpack(ARGV)
local delivery, due = key('delivery', id), key('due', tenant, target)
local before, tries = unpack(redis.call('HMGET', delivery, 'state', 'tries'))
if before ~= 'waiting' or (state ~= 'delivered' and tries ~= try) then return 0 end
redis.call('HSET', delivery, 'state', state, 'answer', answer)
if state == 'waiting' then
  redis.call('ZADD', due, now + wait, id)
  return 1
end
redis.call('ZREM', due, id)
redis.call('HSET', delivery, 'ended_at', now)
if not redis.call('ZSCORE', key('deliveries', tenant), id) then redis.call('UNLINK', delivery) end -- the log has no room for it
return 1
