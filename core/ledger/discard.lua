-- Remove a file that was sent, or what came of it.
-- ARGV: id, tenant
-- Returns 1, or 0 when the tenant has no such file
local found = forget_file(ARGV[1], ARGV[2])
write_counts()
return found and 1 or 0
