"""Jobs and vectors as the service shows them. What a newer service says beside that is kept in `record`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

Vector = np.ndarray[tuple[int], np.dtype[np.float32]]
Vectors = np.ndarray[tuple[int, int], np.dtype[np.float32]]

ENDED = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class InputError:
    """Why an input has no vector. `retryable`: sending it again may help."""

    index: int
    code: str
    message: str
    retryable: bool = False

    @classmethod
    def from_record(cls, record: Mapping[str, Any], index: int) -> Self:
        return cls(
            int(record.get("index", index)),
            str(record.get("code", "unknown")),
            str(record.get("message", "no reason was given")),
            bool(record.get("retryable", False)),
        )


@dataclass(frozen=True)
class Job:
    """A job. Times are Unix seconds; None is what is not known yet. `errors` are the first failed inputs, not all."""

    id: str
    status: str
    """`queued`, `running`, `succeeded`, `failed` or `cancelled`."""
    total: int
    done: int
    failed: int
    queue: str = ""
    model: str = ""
    dimensions: int | None = None
    tokens: int = 0
    truncated: int = 0
    cached: int = 0
    """Inputs whose vectors were computed before."""
    created_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    expires_at: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    dry_run: Mapping[str, Any] | None = None
    """The figures of a dry run: `inputs`, `tokens`, `over_long`, `duplicates`, `bytes`, `seconds`, `backlog_seconds`."""
    errors: tuple[InputError, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """All that the service said of it."""

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def progress(self) -> float:
        """Share of the inputs that have ended, 0 to 1."""
        return (self.done + self.failed) / self.total if self.total else 1.0

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        counts = record.get("counts") or {}
        return cls(
            id=str(record["id"]),
            status=str(record["status"]),
            total=int(counts.get("total", 0)),
            done=int(counts.get("done", 0)),
            failed=int(counts.get("failed", 0)),
            queue=str(record.get("queue") or ""),
            model=str(record.get("model") or ""),
            dimensions=record.get("dimensions"),
            tokens=int(record.get("tokens") or 0),
            truncated=int(record.get("truncated") or 0),
            cached=int(record.get("cached") or 0),
            created_at=record.get("created_at"),
            started_at=record.get("started_at"),
            ended_at=record.get("ended_at"),
            expires_at=record.get("expires_at"),
            metadata=record.get("metadata") or {},
            dry_run=record.get("dry_run"),
            errors=tuple(InputError.from_record(error, -1) for error in record.get("errors") or ()),
            record=record,
        )


@dataclass(frozen=True)
class Result:
    """What came of one input: an embedding, float32, (dimensions,); or an error."""

    index: int
    id: str | None
    embedding: Vector | None
    tokens: int = 0
    truncated: bool = False
    error: InputError | None = None


@dataclass(frozen=True)
class JobResult:
    """A whole job's vectors: float32, (inputs, dimensions), in the order of the inputs; NaN where there is none.

    `errors` tells of each input that failed. The inputs a cancelled job did not get to are NaN, too, and have no error.
    """

    vectors: Vectors
    ids: list[str | None]
    errors: list[InputError]
    truncated: list[int]
    """Indices of the texts that were cut to the model's maximum."""
