-- Ask to be told of new work by the bell, for a while.
-- ARGV: queue, worker, ms (0: no longer)
-- Returns 1 when work waits already: before the bell could ring, or after it rang too late to be heard
local queue, worker, listens = unpack(ARGV)
local listening = key('listening', queue)
prune(listening)
redis.call('ZREM', listening, worker)
if waiting_inputs(queue) > 0 then return 1 end
if tonumber(listens) > 0 then redis.call('ZADD', listening, now + listens, worker) end
return 0
