"""A claimed shard on its way to a result."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from core.blocks import ResultBlock
from core.jobs import InputError
from core.ledger import ClaimedShard, Committed
from worker.engines import Tokens

Vectors = np.ndarray[Any, np.dtype[np.float32]]


class Work:
    """A claimed shard and what is known of its result so far."""

    def __init__(self, shard: ClaimedShard, dimensions: int) -> None:
        self.shard = shard
        self.dimensions = min(shard.options.dimensions or dimensions, dimensions)
        self.vectors: Vectors = np.full((shard.span.count, self.dimensions), np.nan, dtype="<f4")
        self.tokens = [0] * shard.span.count
        self.truncated: set[int] = set()
        self.errors: dict[int, InputError] = {}
        self.missing = shard.span.count
        self.lost = False
        """Cancelled, divided, or given to another worker: nothing of it is stored."""
        self.on_its_way = False
        """Whole, and handed over to be stored."""

    def succeed(self, positions: Sequence[int], vectors: Vectors) -> None:
        """Take the model's vectors of the inputs at `positions`: cut to the job's dimensions, then scaled to unit length."""
        found = vectors[:, : self.dimensions]
        if self.shard.options.normalize:
            with np.errstate(invalid="ignore"):  # infinity by infinity: told below
                found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        finite: Any = np.isfinite(found).all(axis=1)
        for position, vector, good in zip(positions, found, finite, strict=True):
            if good:
                self.vectors[position] = vector
                self.missing -= 1
            else:
                self.fail(position, "not_finite", "the model gave a vector with infinite or undefined numbers")

    def fail(self, position: int, code: str, message: str, *, retryable: bool = False) -> None:
        self.errors[position] = InputError(self.shard.span.first + position, code, message, retryable)
        self.missing -= 1

    def fail_all(self, code: str, message: str) -> None:
        for position in range(self.shard.span.count):
            self.fail(position, code, message)

    def committed(self) -> Committed:
        """The result, when no input is missing any more."""
        ids = tuple(item.id for item in self.shard.inputs)
        return Committed(
            self.shard,
            ResultBlock(
                dimensions=self.dimensions,
                vectors=self.vectors.tobytes(),
                tokens=tuple(self.tokens),
                truncated=frozenset(self.truncated),
                errors=self.errors,
                ids=ids if any(given is not None for given in ids) else None,
            ),
        )


@dataclass
class Item:
    """One tokenised input and where its vector goes."""

    work: Work
    position: int
    tokens: Tokens
