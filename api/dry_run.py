"""A dry run: a job whose texts are counted by a worker, and not embedded. What the API adds to what the worker finds."""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from api.records import DryRun
from core.jobs import Job, Lane
from core.ledger import QueueState
from core.sharding import Input

LIFETIME_SECONDS = 3600
"""Of the figures, unless the request asks for another."""

MOST_COMPARED = 2_000_000
"""Texts that are compared with each other: a request holds 8 bytes for each while it is read."""

FLOAT_BYTES = 4


class Duplicates:
    """Counts the texts that were there before, as they pass by.

    Compared by 64 bits of BLAKE2b: that two of 2,000,000 texts agree by chance happens once in ten million requests.
    """

    def __init__(self, most: int = MOST_COMPARED) -> None:
        self._digests = array("Q")
        self._most = most
        self._inputs = 0

    def counting(self, inputs: Iterable[Input]) -> Iterator[Input]:
        """The same inputs."""
        for item in inputs:
            self._inputs += 1
            if self._inputs <= self._most:
                self._digests.frombytes(hashlib.blake2b(item.text.encode(), digest_size=8).digest())
            yield item

    def count(self) -> int | None:
        """How many texts were there before; None when they were too many to be compared."""
        if self._inputs > self._most:
            return None
        return self._inputs - len(np.unique(np.frombuffer(self._digests, dtype=np.uint64)))


def figures(job: Job, queue: QueueState | None = None) -> DryRun:
    """What a dry run has found so far. Seconds need the state of the job's queue; None while its workers have no speed."""
    dimensions = job.options.dimensions or job.dimensions
    backlog_seconds = seconds = None
    if queue is not None:
        backlog_seconds = _seconds(_before(queue, job.lane), _sum(queue, "inputs_per_second"))
        computed = 1 - job.cached / max(1, job.counts.done)
        seconds = _seconds(round(job.tokens * computed), _sum(queue, "tokens_per_second"))
    return {
        "inputs": job.counts.total,
        "tokens": job.tokens,
        "over_long": job.truncated,
        "duplicates": job.duplicates,
        "cached": job.cached,
        "bytes": None if dimensions is None else FLOAT_BYTES * dimensions * job.counts.done,
        "seconds": seconds,
        "backlog_seconds": backlog_seconds,
    }


def _before(queue: QueueState, lane: Lane) -> int:
    """Inputs that would be embedded before a new job of the lane."""
    lanes: Sequence[Lane] = (Lane.INTERACTIVE,) if lane is Lane.INTERACTIVE else tuple(Lane)
    return queue.running + sum(queue.waiting[name.value] for name in lanes)


def _sum(queue: QueueState, figure: str) -> float:
    return float(sum(worker.facts.get(figure) or 0 for worker in queue.workers))


def _seconds(amount: int, a_second: float) -> float | None:
    return round(amount / a_second, 1) if a_second else (None if amount else 0.0)
