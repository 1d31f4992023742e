-- What every worker does every few seconds, for an API that is asked while no worker lives: batches past their deadline end, what
-- has expired leaves the indexes.
sweep(100)
sweep_files(100)
lapse(10)
write_counts()
