-- Jobs whose objects in the result store are to be removed now, for one worker: others see them again after a while, should it
-- not succeed.
-- ARGV: limit, ms until they count as not removed
-- Returns <job>/<round> of each
local garbage = key('garbage')
local due = redis.call('ZRANGEBYSCORE', garbage, '-inf', now, 'LIMIT', 0, ARGV[1])
for _, member in ipairs(due) do redis.call('ZADD', garbage, now + ARGV[2], member) end
return due
