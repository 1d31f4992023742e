-- Ids of a tenant's jobs, newest first, after a given one. Looks at 1,000 jobs at most: Redis answers nobody else meanwhile.
-- ARGV: tenant, after (id or ''), limit, status or ''
-- Returns {last job looked at or '' at the end, id, …}, or false when `after` is unknown
local tenant, after, limit, status = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local index, position = key('jobs', tenant), 0
sweep(100)
if after ~= '' then
  local rank = redis.call('ZREVRANK', index, after)
  if not rank then return false end
  position = rank + 1
end
local found = {''}
for n, id in ipairs(redis.call('ZREVRANGE', index, position, position + 999)) do
  local is = redis.call('HGET', key('job', id), 'status')
  if is and (status == '' or is == status) then table.insert(found, id) end
  if #found > limit or n == 1000 then
    found[1] = id
    break
  end
end
return found
