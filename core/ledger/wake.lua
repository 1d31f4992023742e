-- ARGV: queue
-- Returns 1 when the caller should send `embed_pending(queue)`
sweep(100) -- every worker asks every few seconds, so ended jobs leave the indexes even when nobody submits
sweep_files(100)
lapse(10)
write_counts()

-- Where nothing waits and nothing runs no job is queued or running, whatever a version that does not count them has done to some.
local live, busy = redis.call('HMGET', key('live'), 'queued', 'running'), false
for _, field in ipairs((live[1] or live[2]) and redis.call('HKEYS', key('waiting')) or {}) do
  local queue = string.match(field, '^(.*):')
  busy = busy or waiting_inputs(queue) > 0 or redis.call('EXISTS', key('leases', queue)) == 1
end
if (live[1] or live[2]) and not busy then redis.call('HDEL', key('live'), 'queued', 'running') end
return wants_wake(ARGV[1], true)
