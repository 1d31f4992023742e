-- Take the waiting work of jobs that may go to either of two queues to `home` while a worker of it lives, else to `fallback` while a
-- worker lives there. What is under a lease stays with its worker; released, or when the lease runs out, it follows its job.
-- ARGV: home, fallback, worker
-- Returns how many jobs the caller should move on with: one call does a little, as Redis answers nobody else meanwhile
local home, fallback, worker = unpack(ARGV)
local MOST_JOBS = 100
local MOST_STEPS = 20000 -- roughly what is looked at on the way

local home_lives, fallback_lives = prune(key('workers', home)) > 0, prune(key('workers', fallback)) > 0
if not (home_lives or fallback_lives) then return 0 end
local from, to = home, fallback
if home_lives then from, to = fallback, home end
if not (home_lives and fallback_lives) then -- nobody claims there, where this is done otherwise
  recover(from)
  write_counts()
end

local index = key('auto', from)
local jobs = redis.call('ZRANGE', index, 0, MOST_JOBS - 1) -- oldest first, so they keep their order
if #jobs == 0 then return 0 end
-- One worker at a time: all of them together would keep Redis busy.
if not redis.call('SET', key('moving'), worker, 'NX', 'PX', 1000) and redis.call('GET', key('moving')) ~= worker then return 0 end

local suspects = {} -- by job
for _, member in ipairs(redis.call('LRANGE', key('suspects', from), 0, -1)) do
  local id = split(member)
  suspects[id] = suspects[id] or {}
  table.insert(suspects[id], member)
end

-- Inputs of a job that are under no lease, reckoned from those that are: of shards that wait it may have many more.
local steps = 0
local function waiting_of(id, total, done, failed)
  local waiting = total - (done or 0) - (failed or 0)
  for _, shard in ipairs(redis.call('HKEYS', key('attempts', id))) do
    steps = steps + 1
    local member = id .. '/' .. shard
    if redis.call('ZSCORE', key('leases', from), member) or redis.call('ZSCORE', key('leases', to), member) then
      waiting = waiting - count_of(shard)
    end
  end
  return waiting
end

for _, id in ipairs(jobs) do
  if steps > MOST_STEPS then break end
  local record = redis.call('HMGET', key('job', id), 'lane', 'tenant', 'created_at', 'total', 'done', 'failed')
  local lane, tenant, created = unpack(record, 1, 3)
  redis.call('ZREM', index, id)
  redis.call('ZADD', key('auto', to), created, id)
  redis.call('HSET', key('job', id), 'queue', to)
  if redis.call('EXISTS', key('pending', id)) == 1 then
    steps = steps + (redis.call('LPOS', key('line', from, lane, tenant), id) or 0)
    leave_line(id, from, lane, tenant)
    line_up(id, to, lane, tenant, false)
  end
  for _, member in ipairs(suspects[id] or {}) do
    redis.call('LREM', key('suspects', from), 1, member)
    redis.call('RPUSH', key('suspects', to), member)
  end
  local waiting = waiting_of(id, unpack(record, 4, 6))
  add_waiting(from, lane, 0 - waiting) -- not -waiting: Redis 6 does not take Lua's -0
  add_waiting(to, lane, waiting)
  tally('moved:' .. to, 1)
end
write_counts()
local left = redis.call('ZCARD', index)
if left == 0 then redis.call('DEL', key('moving')) end
return left
