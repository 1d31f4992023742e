"""Jobs and their life.

    queued ──first shard claimed──▶ running ──last input ended──▶ succeeded | failed
       └───────────cancel──────────────┴──────▶ cancelled

The ledger's scripts make these moves, each in one atomic step, and none leads out of an ended state.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

OPTIONS_VERSION = 2
"""Of the JSON of a job's options; 2 has `truncate` as `start` and `chunk`, which version 1 would take for `end`."""


class JobStatus(StrEnum):
    QUEUED = "queued"
    """Accepted; no worker has taken a shard yet. Moved on by the first claim, or by cancel."""
    RUNNING = "running"
    """At least one shard was claimed. Moved on by the commit of the last input, or by cancel."""
    SUCCEEDED = "succeeded"
    """Every input ended and at least one has a vector; `counts.failed` tells how many have none."""
    FAILED = "failed"
    """Every input ended and none has a vector."""
    CANCELLED = "cancelled"
    """Cancelled by its client; what was finished before stays readable."""

    @property
    def ended(self) -> bool:
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


class Lane(StrEnum):
    INTERACTIVE = "interactive"
    BULK = "bulk"


@dataclass(frozen=True)
class JobOptions:
    """How the inputs of a job are embedded."""

    normalize: bool = True
    dimensions: int | None = None
    prompt_name: str | None = None
    truncate: str = "end"
    """Of a text beyond the model's maximum: `end` and `start` are what is cut off, `error` fails it, `chunk` keeps all of it."""
    chunk_overlap: int = 0
    """Tokens of a chunk that the next one begins with."""
    dry_run: bool = False
    """Count the tokens of the inputs, and compute no vectors."""

    def to_json(self) -> str:
        """What a worker reads. Options that older workers know look as ever; others have a version, which these refuse."""
        told = asdict(self)
        for name in ("chunk_overlap", "dry_run"):
            if not told[name]:
                del told[name]
        if self.truncate in ("start", "chunk"):
            told["v"] = OPTIONS_VERSION
        return json.dumps(told, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises ValueError or TypeError when another version wrote it."""
        told = json.loads(text)
        if told.pop("v", 1) > OPTIONS_VERSION:
            raise ValueError("the options are of a newer version")
        return cls(**told)


@dataclass(frozen=True)
class Counts:
    """Inputs of a job: all, with a vector, and ended without one."""

    total: int
    done: int = 0
    failed: int = 0


@dataclass(frozen=True)
class InputError:
    """Why one input has no vector. `retryable` tells whether sending it again may help."""

    index: int
    code: str
    message: str
    retryable: bool = False


@dataclass(frozen=True)
class Job:
    """One client request. Times are Unix seconds; what only a worker knows is None until the first commit."""

    id: str
    tenant: str
    status: JobStatus
    counts: Counts
    queue: str
    lane: Lane
    model: str
    options: JobOptions
    metadata: dict[str, Any]
    ttl_seconds: int
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    expires_at: float | None = None
    device: str | None = None
    engine: str | None = None
    dtype: str | None = None
    revision: str | None = None
    parity: float | None = None
    """The worst of the workers that had a part in it; None also when none of them measured it."""
    dimensions: int | None = None
    tokens: int = 0
    truncated: int = 0
    """Inputs that were longer than the model's maximum and were cut; in a dry run all that are longer."""
    cached: int = 0
    """Inputs whose vectors were computed before."""
    duplicates: int | None = None
    """Of a dry run: inputs whose text stood in the job before."""
    errors: tuple[InputError, ...] = field(default=())

    @property
    def progress(self) -> float:
        """Share of the inputs that have ended, 0 to 1."""
        return (self.counts.done + self.counts.failed) / self.counts.total

    @classmethod
    def from_record(cls, job_id: str, record: Mapping[str, str], errors: tuple[InputError, ...] = ()) -> Self:
        """A job from its hash in the ledger (all values are strings, times in milliseconds)."""

        def seconds(name: str) -> float | None:
            return int(record[name]) / 1000 if name in record else None

        return cls(
            id=job_id,
            tenant=record["tenant"],
            status=JobStatus(record["status"]),
            counts=Counts(int(record["total"]), int(record.get("done", 0)), int(record.get("failed", 0))),
            queue=record["queue"],
            lane=Lane(record["lane"]),
            model=record["model"],
            options=JobOptions.from_json(record["options"]),
            metadata=json.loads(record["metadata"]),
            ttl_seconds=int(record["ttl_seconds"]),
            created_at=int(record["created_at"]) / 1000,
            started_at=seconds("started_at"),
            ended_at=seconds("ended_at"),
            expires_at=seconds("expires_at"),
            device=record.get("device"),
            engine=record.get("engine"),
            dtype=record.get("dtype"),
            revision=record.get("revision"),
            parity=float(record["parity"]) if "parity" in record else None,
            dimensions=int(record["dimensions"]) if "dimensions" in record else None,
            tokens=int(record.get("tokens", 0)),
            truncated=int(record.get("truncated", 0)),
            cached=int(record.get("cached", 0)),
            duplicates=int(record["duplicates"]) if "duplicates" in record else None,
            errors=errors,
        )
