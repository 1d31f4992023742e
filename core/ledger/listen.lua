-- Ask to be told of new work by the bell, for a while.
-- ARGV: queue, worker, ms (0: no longer)
-- Returns 1 when work waits already
local queue, worker, listens = unpack(ARGV)
local listening = key('listening', queue)
prune(listening)
if tonumber(listens) == 0 then
  redis.call('ZREM', listening, worker)
elseif waiting_inputs(queue) > 0 then
  return 1
else
  redis.call('ZADD', listening, now + listens, worker)
end
return 0
