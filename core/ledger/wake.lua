-- ARGV: queue
-- Returns 1 when the caller should send `embed_pending(queue)`
sweep(100) -- every worker asks every few seconds, so ended jobs leave the indexes even when nobody submits
return wants_wake(ARGV[1], true)
