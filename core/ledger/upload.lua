-- Store a piece of a file that is being sent. It vanishes by itself if the rest never comes.
-- ARGV: id, tenant, number of the piece, lifetime ms, limits (JSON: setting -> bytes), piece, bytes it counts for
-- Returns {'stored'} | {'full', setting, bytes of all files that count under it}
local id, tenant, number, lifetime, limits, piece, size = unpack(ARGV)
sweep_files(10)
limits, size = cjson.decode(limits), tonumber(size)
local member = id .. '/' .. tenant
if redis.call('HEXISTS', key('content', id), number) == 0 then
  for setting, field in pairs({MAX_FILES_BYTES = 'files', MAX_TENANT_FILES_BYTES = 'files:' .. tenant}) do
    local held = tonumber(redis.call('HGET', key('live'), field) or 0) + (counts[field] or 0)
    if limits[setting] and held + size > limits[setting] then
      write_counts()
      return {'full', setting, held}
    end
  end
  redis.call('HSET', key('content', id), number, piece)
  redis.call('HINCRBY', key('sizes'), member, size)
  count('files', size)
  count('files:' .. tenant, size)
end
redis.call('PEXPIRE', key('content', id), lifetime)
redis.call('ZADD', key('uploads'), now + lifetime, member)
write_counts()
return {'stored'}
