"""How long the stages of the work take, and how batches are: counted in buckets since the process began.

No library of metrics: what an API process shows comes from the worker's report in the ledger, whose form is `Histogram.report`.
"""

import threading
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from core.jobs import Lane
from core.ledger import Claim

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
WAIT_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 43200.0)
INPUTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144)
RATIOS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)

STAGES = ("tokenize", "forward", "commit")
"""The inputs of one claim; one batch on the device; storing what is whole."""


class Histogram:
    """Values counted by the first bound that they do not exceed. Any thread may count."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def count(self, value: float) -> None:
        bucket = bisect_left(self._bounds, value)
        with self._lock:
            self._counts[bucket] += 1
            self._sum += value

    def report(self) -> dict[str, Any]:
        """`bounds`; `counts` of the values up to each of them, and last of all; their `sum`."""
        with self._lock:
            return {"bounds": list(self._bounds), "counts": list(accumulate(self._counts)), "sum": round(self._sum, 6)}


class Histograms:
    """Those of one process."""

    def __init__(self) -> None:
        self.waits = {lane: Histogram(WAIT_SECONDS) for lane in Lane}
        self.stages = {stage: Histogram(SECONDS) for stage in STAGES}
        self.batch_inputs = Histogram(INPUTS)
        self.batch_tokens = Histogram(TOKENS)
        self.batch_padding = Histogram(RATIOS)

    def count_waits(self, claim: Claim) -> None:
        """From their creation to this claim, those jobs that began with it. What waits behind their first shard is their own."""
        for shard in claim.shards:
            if claim.lane and shard.waited_seconds is not None:
                self.waits[claim.lane].count(shard.waited_seconds)

    def report(self) -> dict[str, Any]:
        """`wait_seconds` by lane, `stage_seconds` by stage, `batch_inputs`, `batch_tokens`, `batch_padding_ratio`."""
        return {
            "wait_seconds": {lane.value: histogram.report() for lane, histogram in self.waits.items()},
            "stage_seconds": {stage: histogram.report() for stage, histogram in self.stages.items()},
            "batch_inputs": self.batch_inputs.report(),
            "batch_tokens": self.batch_tokens.report(),
            "batch_padding_ratio": self.batch_padding.report(),
        }
