-- A worker's process is about to end, because its engine does not come back; perhaps from a suspect.
-- ARGV: queue, then the suspect: job, shard, attempt ('' without one)
-- Returns 1, or 0 when it was not a suspect's current attempt, or this was said before
local queue, id, shard, attempt = unpack(ARGV)
tally('hangs:' .. queue, 1)
write_counts()
local found = id ~= '' and redis.call('HGET', key('deaths', id), shard)
if not found or redis.call('HGET', key('attempts', id), shard) ~= attempt then return 0 end
local held, lane = is_held(queue, id, shard, attempt)
if held then
  redis.call('ZREM', key('leases', queue), id .. '/' .. shard)
  count_leased(queue, lane, 0 - count_of(shard))
  suspect(id, shard, 'hung')
else
  local fates = cjson.decode(found)
  if fates[attempt] ~= 'died' then return 0 end -- its lease had run out before
  fates[attempt] = 'hung'
  redis.call('HSET', key('deaths', id), shard, cjson.encode(fates))
end
tally('hung:' .. queue, 1)
write_counts()
return 1
