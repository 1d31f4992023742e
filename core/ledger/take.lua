-- Take the delivery that is due first. It is due again after the lease, should nothing be heard of it.
-- ARGV: tenant, target, lease ms
-- Returns {delivery, event, number of this try, ms since 1970 of its creation}, or false when none is due
local tenant, target, lease = unpack(ARGV)
local due = key('due', tenant, target)
for _, delivery in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, 10)) do
  local event, created, state = unpack(redis.call('HMGET', key('delivery', delivery), 'event', 'created_at', 'state'))
  if state == 'waiting' then
    redis.call('ZADD', due, now + lease, delivery)
    return {delivery, event, redis.call('HINCRBY', key('delivery', delivery), 'tries', 1), created}
  end
  redis.call('ZREM', due, delivery) -- it has ended or expired
end
return false
