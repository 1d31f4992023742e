-- Keep entries of the cache, note which were used, and drop those that were not for longest. There are never more than `limit` bytes
-- of them, and none where Redis has little memory left. It begins with what frees memory: a full server does that all the same.
-- ARGV: limit, how many digests were used, those, then digest, entry, digest, entry, …
-- Returns how many entries were dropped
local limit, first = tonumber(ARGV[1]), 3 + tonumber(ARGV[2])
local cache, used = key('cache'), key('cache', 'used')
local seconds = tonumber(clock[1])
local MOST_DROPPED = 1000 -- Redis answers nobody else meanwhile
local NOTED_SECONDS = 60 -- a use is noted that often at most: a call that has nothing to note waits for no disk
local SHARE = 0.75 -- of maxmemory; the rest is for jobs alone

-- Memory of an entry: a block of the allocator, which has four sizes between one power of two and the next, and its places in the
-- hash and in the sorted set. tests/integration/test_cache.py compares it with what servers use.
local function taken(bytes)
  local block, step = bytes + 16, 16
  while step * 8 < block do step = step * 2 end
  return math.ceil(block / step) * step + 224
end

local function free()
  local memory = redis.call('INFO', 'memory')
  local most = tonumber(string.match(memory, '\nmaxmemory:(%d+)'))
  return most > 0 and math.floor(SHARE * most) - tonumber(string.match(memory, 'used_memory:(%d+)')) or math.huge
end

local held = tonumber(redis.call('HGET', cache, 'bytes') or 0)
local space, change, dropped, coming = math.min(limit - held, free()), 0, 0, 0
for n = first + 1, #ARGV, 2 do coming = coming + taken(#ARGV[n]) end

if space < coming then
  for _, digest in ipairs(redis.call('ZRANGE', used, 0, MOST_DROPPED - 1)) do
    if space >= coming then break end
    local bytes = redis.call('HSTRLEN', cache, digest)
    redis.call('ZREM', used, digest)
    redis.call('HDEL', cache, digest)
    local freed = bytes > 0 and taken(bytes) or 0
    space, change, dropped = space + freed, change - freed, dropped + 1
  end
end
if redis.call('EXISTS', used) == 0 then -- all are dropped, or somebody has removed only this of the two keys
  redis.call('UNLINK', cache)
  space, change, held = space + held + change, 0, 0
end

for n = first, #ARGV, 2 do
  local digest, entry = ARGV[n], ARGV[n + 1]
  if taken(#entry) <= space then
    local before = redis.call('HSTRLEN', cache, digest)
    local more = taken(#entry) - (before > 0 and taken(before) or 0)
    redis.call('HSET', cache, digest, entry)
    redis.call('ZADD', used, seconds, digest)
    space, change = space - more, change + more
  end
end
for n = 3, first - 1 do
  local noted = redis.call('ZSCORE', used, ARGV[n])
  if noted and seconds - noted >= NOTED_SECONDS then redis.call('ZADD', used, seconds, ARGV[n]) end
end
if change ~= 0 then redis.call('HINCRBY', cache, 'bytes', change) end
return dropped
