-- ARGV: kind ('requests' or 'inputs'), tenant, so many a minute, cost; 0 only looks, and writes nothing
-- Returns what `spend` does
return {spend(ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]))}
