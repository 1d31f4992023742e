"""What the service decides: jobs, shards, batches, routing and the ledger.

Nothing here may import Flask, torch, `api` or `worker`. `queues`, `blocks` and `ledger` are the doors to Celery,
msgpack and Redis; every other module needs the standard library only.
"""
