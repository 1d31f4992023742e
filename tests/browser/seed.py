"""A ledger with more in it than a page can show, written through the ledger itself, with as little in each job as possible."""

import random

import numpy as np

from core.blocks import ResultBlock
from core.config import Settings
from core.jobs import InputError, JobOptions, Lane
from core.ledger import ClaimedShard, Committed, Ledger, NewJob
from core.sharding import Input, Shard, Span
from tests.fakes import DIMENSIONS

TENANT = "default"
MODEL = Settings().model_name
NAME = "seed@test"
FACTS = {"device": "cpu", "engine": "fake", "dtype": "float32", "revision": "fake", "parity": 0.9999}
SHARD_INPUTS = 1000
TTL_SECONDS = 3600


def submit(ledger: Ledger, inputs: int, *, queue: str = "cpu") -> str:
    """A job of so many texts that nobody works on; its id."""
    job_id = f"job_{random.randbytes(16).hex()}"
    spans = [Span(first, min(SHARD_INPUTS, inputs - first)) for first in range(0, inputs, SHARD_INPUTS)]
    *staged, last = (Shard(span, (Input("a"),) * span.count) for span in spans)
    if staged:
        ledger.stage(job_id, staged)
    job = NewJob(job_id, TENANT, queue, Lane.BULK, MODEL, JobOptions(), {}, TTL_SECONDS, inputs, len(spans))
    ledger.submit(job, [last], max_waiting_inputs=10**9)
    return job_id


def embed(ledger: Ledger, *, failed: bool = False) -> None:
    """Do what waits in the queue `cpu`, with vectors that are random, or none."""
    numbers = np.random.default_rng(0)
    while shards := ledger.claim("cpu", NAME, lease_seconds=60, max_bytes=1_000_000).shards:
        assert all(ledger.commit("cpu", [Committed(shard, _result(shard, numbers, failed)) for shard in shards], **FACTS))
    ledger.release("cpu", NAME)


def _result(shard: ClaimedShard, numbers: np.random.Generator, failed: bool) -> ResultBlock:
    span = shard.span
    vectors = numbers.standard_normal((span.count, DIMENSIONS), dtype=np.float32)
    errors = {}
    if failed:
        vectors[:] = np.nan
        errors = {n: InputError(span.first + n, "text_too_long", "the text is too long") for n in range(span.count)}
    return ResultBlock(DIMENSIONS, vectors.astype("<f4").tobytes(), (3,) * span.count, errors=errors)


def cancelled_with_gap(ledger: Ledger) -> str:
    """A job of three shards in the queue `gpu` that was cancelled when the first and the last were done; its id."""
    job_id = submit(ledger, 3 * SHARD_INPUTS, queue="gpu")
    numbers = np.random.default_rng(0)
    shards = ledger.claim("gpu", NAME, lease_seconds=60, max_bytes=1_000_000).shards
    done = [shard for shard in shards if shard.job_id == job_id and shard.span.first != SHARD_INPUTS]
    assert len(done) == 2
    assert all(ledger.commit("gpu", [Committed(shard, _result(shard, numbers, False)) for shard in done], **FACTS))
    ledger.cancel(job_id, TENANT)
    ledger.release("gpu", NAME)
    return job_id


def seed_jobs(ledger: Ledger, count: int) -> dict[str, int]:
    """Jobs of one text: the oldest failed, then such as succeeded, were cancelled, and wait for a gpu. How many of each."""
    failed, succeeded, cancelled = count // 100, count // 5, count // 20
    for _ in range(failed):
        submit(ledger, 1)
    embed(ledger, failed=True)
    for _ in range(succeeded):
        submit(ledger, 1)
    embed(ledger)
    for _ in range(cancelled):
        ledger.cancel(submit(ledger, 1), TENANT)
    waiting = count - failed - succeeded - cancelled
    for _ in range(waiting):
        submit(ledger, 1, queue="gpu")
    return {"failed": failed, "succeeded": succeeded, "cancelled": cancelled, "queued": waiting}
