"""A worker's part done by hand: claim so many shards, commit them, report. For tests that need a job exactly half done."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.blocks import ResultBlock
from core.config import Settings
from core.jobs import InputError
from core.ledger import Claim, ClaimedShard, Committed, Ledger, Worker
from tests.fakes import DIMENSIONS, vector_of

NAME = "by-hand@test"
REASON = "the text has more tokens than the model's maximum of 256"


@dataclass
class Driver:
    ledger: Ledger
    queue: str = "cpu"

    def claim(self, max_bytes: int = 1) -> Claim:
        """The next shard, and no more, or shards of so many bytes."""
        return self.ledger.claim(self.queue, NAME, lease_seconds=60, max_bytes=max_bytes)

    def commit(self, *shards: ClaimedShard, failed: Collection[int] = ()) -> None:
        """Store the shards' vectors; inputs whose index in the job is in `failed` have none."""
        facts: dict[str, Any] = {"device": "cpu", "engine": "fake", "dtype": "float32", "revision": "fake", "parity": 0.9999}
        finished = [Committed(shard, result_of(shard, failed)) for shard in shards]
        assert all(self.ledger.commit(self.queue, finished, **facts))

    def work(self, shards: int, failed: Collection[int] = ()) -> None:
        """Claim and commit so many shards."""
        for _ in range(shards):
            (shard,) = self.claim().shards
            self.commit(shard, failed=failed)

    def work_all(self, failed: Collection[int] = ()) -> int:
        """Claim and commit all that waits. Returns how many shards that were."""
        done = 0
        while shards := self.claim(20_000).shards:
            self.commit(*shards, failed=failed)
            done += len(shards)
        return done

    def report(self, *, name: str = NAME, queues: tuple[str, ...] = ("cpu",), lifetime_seconds: float = 60) -> None:
        """Live, as a worker with the fake engine."""
        self.ledger.report(
            Worker(
                name=name,
                queues=queues,
                state="idle",
                model=Settings().model_name,
                revision="fake",
                engine="fake",
                device="cpu",
                dtype="float32",
                dimensions=DIMENSIONS,
                max_tokens=256,
                prompts=("query",),
                facts={"inputs_per_second": 10.0},
                parity=0.9999,
            ),
            lifetime_seconds=lifetime_seconds,
        )


def result_of(shard: ClaimedShard, failed: Collection[int] = ()) -> ResultBlock:
    """What a worker with the fake engine would find, the first input of the shard being cut to the model's maximum."""
    positions = [index - shard.span.first for index in failed if shard.span.first <= index < shard.span.end]
    vectors = np.stack([vector_of(item.text) for item in shard.inputs]).astype("<f4")
    vectors[positions] = np.nan
    ids = tuple(item.id for item in shard.inputs)
    return ResultBlock(
        dimensions=DIMENSIONS,
        vectors=vectors.tobytes(),
        tokens=tuple(0 if n in positions else len(item.text.split()) + 2 for n, item in enumerate(shard.inputs)),
        truncated=frozenset({0}),
        errors={n: InputError(shard.span.first + n, "text_too_long", REASON) for n in positions},
        ids=ids if any(ids) else None,
    )
