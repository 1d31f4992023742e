-- Whether there is room for a job of which nothing is known yet: a long one that will be refused is not read. Writes nothing.
-- ARGV: tenant, limits (JSON: setting -> number)
-- Returns false, or what `broken_limit` does
return broken_limit(ARGV[1], cjson.decode(ARGV[2]), 1, 1) or false
