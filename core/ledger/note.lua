-- Note what was found out about an ended batch. One that was deleted meanwhile gets no new record.
-- ARGV: id, then fields with their values
if redis.call('EXISTS', key('batch', ARGV[1])) == 1 then redis.call('HSET', key('batch', ARGV[1]), unpack(ARGV, 2)) end
