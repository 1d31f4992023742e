-- Remove jobs and every trace of them, whether they have ended or not. What is gone already is passed over.
-- ARGV: job, tenant, job, tenant, …
for n = 1, #ARGV, 2 do
  local id, tenant = ARGV[n], ARGV[n + 1]
  local record = redis.call('HMGET', key('job', id), 'status', 'tenant')
  if record[2] == tenant then
    if is_live(record[1]) then cancel(id) end
    erase(id, tenant)
  end
end
write_counts()
