-- A file has come whole: it exists from now on, for its lifetime.
-- ARGV: id, tenant, pieces, lifetime ms, then the fields of its record with their names
-- Returns ms since 1970 of its creation, or false when pieces of it are lost
local id, tenant, pieces, lifetime = unpack(ARGV, 1, 4)
local file, created = key('file', id), redis.call('HGET', key('file', id), 'created_at')
if created then return created end -- a repeat of this very call
if redis.call('HLEN', key('content', id)) ~= tonumber(pieces) then return false end
local expires = now + lifetime
redis.call('HSET', file, 'tenant', tenant, 'created_at', now, 'expires_at', expires, unpack(ARGV, 5))
for _, name in ipairs({file, key('content', id)}) do redis.call('PEXPIREAT', name, expires) end
redis.call('ZADD', key('uploads'), expires, id .. '/' .. tenant)
redis.call('ZADD', key('files', tenant), now, id)
return tostring(now)
