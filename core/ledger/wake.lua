-- ARGV: queue
-- Returns 1 when the caller should send `embed_pending(queue)`
sweep(100) -- every worker asks every few seconds, so ended jobs leave the indexes even when nobody submits
sweep_files(100)
lapse(10)
write_counts()
return wants_wake(ARGV[1], true)
