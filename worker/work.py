"""A claimed shard on its way to a result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from core.blocks import ResultBlock
from core.jobs import InputError
from core.ledger import ClaimedShard, Committed
from core.ledger.cache import Entry
from core.tracing import NOTHING
from worker.engines import Tokens

Vectors = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Chunked:
    """The chunks of one input, as their vectors come in; one vector in the end."""

    weights: list[int]
    vectors: dict[int, Vectors] = field(default_factory=dict)

    def mean(self) -> Vectors | None:
        """All chunks' vectors, weighted by their tokens of the text, float32, (dimensions,); None while one is missing."""
        if len(self.vectors) < len(self.weights):
            return None
        vectors = np.stack([self.vectors[chunk] for chunk in range(len(self.weights))]).astype(np.float64)
        mean: Vectors = np.average(vectors, axis=0, weights=self.weights).astype(np.float32)
        return mean


class Work:
    """A claimed shard and what is known of its result so far."""

    def __init__(self, shard: ClaimedShard, dimensions: int) -> None:
        self.shard = shard
        self.dimensions = min(shard.options.dimensions or dimensions, dimensions)
        self.vectors: Vectors = np.full((shard.span.count, self.dimensions), np.nan, dtype="<f4")
        self.tokens = [0] * shard.span.count
        self.truncated: set[int] = set()
        self.chunked: dict[int, Chunked] = {}
        self.errors: dict[int, InputError] = {}
        self.missing = shard.span.count
        self.lost = False
        """Cancelled, divided, or given to another worker: nothing of it is stored."""
        self.on_its_way = False
        """Whole, and handed over to be stored."""
        self.span = NOTHING
        """That of all that was claimed with it."""
        self.digests: list[bytes] = []
        """Of the inputs, for the cache; none when it is not to be used."""
        self.recalled: set[int] = set()
        """Positions of inputs that came from the cache."""
        self.raw: dict[int, bytes] = {}
        """The model's own vectors, whole, by position: what the cache may have."""

    @property
    def positions(self) -> list[int]:
        """Those of the inputs that are to be embedded."""
        return [position for position in range(self.shard.span.count) if position not in self.recalled]

    def recall(self, entries: Mapping[int, Entry]) -> None:
        """Take what the cache has for the inputs at these positions."""
        if not entries:
            return
        self.recalled.update(entries)
        for position, entry in entries.items():
            self.tokens[position] = entry.tokens
            if entry.truncated:
                self.truncated.add(position)
        vectors = np.frombuffer(b"".join(entry.vector for entry in entries.values()), dtype="<f4")
        self.succeed(list(entries), vectors.reshape(len(entries), -1))

    def take_up(self, position: int, chunks: Sequence[Tokens]) -> "list[Item]":
        """What is to be embedded of the input at `position`: all of it as one, or its chunks."""
        self.tokens[position] = sum(len(tokens.ids) for tokens in chunks)
        if any(tokens.truncated for tokens in chunks):
            self.truncated.add(position)
        if len(chunks) > 1:
            self.chunked[position] = Chunked([tokens.weight for tokens in chunks])
        return [Item(self, position, tokens, number) for number, tokens in enumerate(chunks)]

    def count(self, position: int, chunks: Sequence[Tokens]) -> None:
        """Be done with the input at `position`, of which only the tokens are wanted."""
        self.tokens[position] = sum(len(tokens.ids) for tokens in chunks)
        self.missing -= 1

    def take(self, items: "Sequence[Item]", vectors: Vectors) -> None:
        """Take the model's vectors of items, float32, (len(items), the model's dimensions)."""
        whole = [row for row, item in enumerate(items) if item.position not in self.chunked]
        self.succeed([items[row].position for row in whole], vectors[whole])
        for row, item in enumerate(items):
            found = self.chunked.get(item.position)
            if found and not item.failed:
                found.vectors[item.chunk] = vectors[row]
                mean = found.mean()
                if mean is not None:
                    self.succeed([item.position], mean[None])

    def succeed(self, positions: Sequence[int], vectors: Vectors) -> None:
        """Take the model's vectors of the inputs at `positions`: cut to the job's dimensions, then scaled to unit length."""
        found = vectors[:, : self.dimensions]
        if self.shard.options.normalize:
            with np.errstate(invalid="ignore"):  # infinity by infinity: told below
                found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        finite: Any = np.isfinite(found).all(axis=1)
        for position, vector, good, whole in zip(positions, found, finite, vectors, strict=True):
            if good:
                self.vectors[position] = vector
                self.missing -= 1
                if self.digests and position not in self.recalled and np.isfinite(whole).all():
                    self.raw[position] = whole.astype("<f4").tobytes()
            else:
                self.fail(position, "not_finite", "the model gave a vector with infinite or undefined numbers")

    def fail(self, position: int, code: str, message: str, *, retryable: bool = False) -> None:
        if position in self.errors:  # another chunk of it failed before
            return
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
                chunks={position: len(found.weights) for position, found in self.chunked.items()},
            ),
            cached=len(self.recalled),
        )


@dataclass
class Item:
    """One tokenised input, or a chunk of one, and where its vector goes."""

    work: Work
    position: int
    tokens: Tokens
    chunk: int = 0

    @property
    def failed(self) -> bool:
        """Nobody needs its vector any more: another chunk of the input has failed."""
        return self.position in self.work.errors
