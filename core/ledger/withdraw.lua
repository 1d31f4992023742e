-- Delete one of the two files of an ended batch. With the last of them its job's results go.
-- ARGV: id, tenant, 'output' or 'error'
-- Returns 1, or 0 when the tenant has no such file any more
local id, tenant, kind = unpack(ARGV)
local output, error = files_of(id)
if redis.call('EXISTS', key('batch', id)) == 0 then return 0 end -- it has expired, and the index is not yet swept
if redis.call('ZREM', key('files', tenant), kind == 'output' and output or error) == 0 then return 0 end
redis.call('HSET', key('batch', id), 'deleted:' .. kind, 1)
local lines, completed, no_output, no_error =
  unpack(redis.call('HMGET', key('batch', id), 'lines', 'completed', 'deleted:output', 'deleted:error'))
if (no_output or completed == '0') and (no_error or completed == lines) then
  redis.call('UNLINK', key('vectors', id))
  remove_objects(id)
end
return 1
