-- A worker says that it lives, by the server's clock: the clocks of machines differ.
-- ARGV: worker, lifetime ms, report (JSON), then the queues it takes from
local worker, lifetime, report = unpack(ARGV, 1, 3)
local function note(workers)
  prune(workers) -- first: a full server takes reports all the same
  redis.call('ZADD', workers, now + lifetime, worker)
end
note(key('workers'))
for n = 4, #ARGV do note(key('workers', ARGV[n])) end
mark_layout()
redis.call('HSET', key('worker', worker), 'report', report, 'seen_at', now, 'lifetime', lifetime)
redis.call('PEXPIRE', key('worker', worker), lifetime)
