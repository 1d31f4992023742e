-- Replace a suspect shard that its worker holds by smaller ones, which are handed out alone. Deaths are held against none of them.
-- ARGV: queue, job, shard, attempt, then per part: shard, input block
-- Returns 1, or 0 when the worker no longer holds the shard
local queue, id, shard, attempt = unpack(ARGV, 1, 4)
if redis.call('HGET', key('attempts', id), shard) ~= attempt
  or redis.call('ZREM', key('leases', queue), id .. '/' .. shard) == 0 then return 0 end
local record = redis.call('HMGET', key('job', id), 'status', 'lane', 'queue', 'bytes')
if not is_live(record[1]) then return 0 end
count_leased(queue, record[2], 0 - count_of(shard))
tally('divided:' .. queue, 1)
local lost = redis.call('HSTRLEN', key('inputs', id), shard)
redis.call('HDEL', key('inputs', id), shard)
redis.call('HDEL', key('attempts', id), shard)
redis.call('HDEL', key('deaths', id), shard)
local waiting = 0
for n = 5, #ARGV, 2 do
  local part, block = ARGV[n], ARGV[n + 1]
  redis.call('HSET', key('inputs', id), part, block)
  redis.call('HSET', key('attempts', id), part, 0) -- its name is new, and to workers of layout 1 attempts are deaths
  redis.call('HSET', key('deaths', id), part, '{}')
  redis.call('RPUSH', key('suspects', record[3]), id .. '/' .. part)
  waiting = waiting + count_of(part)
  lost = lost - #block
end
add_waiting(record[3], record[2], waiting)
if record[4] then shrink(id, lost) end
write_counts()
return 1
