"""Batches: jobs with a file at both ends. `core.ledger` maps the keys.

The job does the work and knows nothing of lines. What is kept beside it says which of its inputs belong to which line of the
file, so that the lines of the output can be made of the job's result.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import msgpack

from core.errors import BatchEnded, BatchNotFound, JobNotFound
from core.jobs import InputError, Job, JobStatus
from core.ledger.ledger import SHOWN_ERRORS, STAGED_SECONDS, Ledger, _milliseconds, _record, _text, _translated

VERSION = 1


@dataclass(frozen=True)
class LineBlock:
    """Consecutive lines of a batch: each one's id, number of inputs, and whether its vectors go as base64."""

    first: int
    """Index in the job of their first input."""
    ids: tuple[str, ...]
    counts: tuple[int, ...]
    base64: tuple[bool, ...]

    def pack(self) -> bytes:
        packed: bytes = msgpack.packb({"v": VERSION, **vars(self)})
        return packed

    @classmethod
    def unpack(cls, block: bytes) -> Self:
        found = msgpack.unpackb(block)
        return cls(found["first"], tuple(found["ids"]), tuple(found["counts"]), tuple(found["base64"]))


@dataclass(frozen=True)
class Batch:
    """A batch and its job. Times are Unix seconds."""

    id: str
    """`batch_<hex>`; its job is `job_<hex>`."""
    tenant: str
    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None
    created_at: float
    deadline: float | None
    """The end of the completion window; None of a batch that failed."""
    lines: int
    blocks: int
    """How many line blocks there are."""
    job: Job | None
    """None of a batch that failed: nothing of it runs."""
    lapsed: bool = False
    """Its window was over before it ended."""
    errors: tuple[dict[str, Any], ...] = ()
    """What is wrong with the input file of a batch that failed."""
    completed: int | None = None
    """Lines whose inputs all have vectors; None until somebody counted them after the end."""
    sizes: dict[str, tuple[int, ...]] | None = None
    """Bytes of the `output` and `error` files that each line block makes, as far as somebody has measured them."""
    deleted: frozenset[str] = frozenset()
    """Which of its two files were deleted."""

    @property
    def status(self) -> str:
        """OpenAI's word. `validating`, `finalizing` and `cancelling` do not occur: each is over within one request."""
        if self.job is None:
            return "failed"
        if not self.job.status.ended:
            return "in_progress"
        if self.job.status is JobStatus.CANCELLED:
            return "expired" if self.lapsed else "cancelled"
        return "completed"

    @property
    def counts(self) -> tuple[int, int]:
        """Lines that have vectors, and ended lines that have none. While the batch runs: as if all lines had as many inputs."""
        if self.completed is not None:
            return self.completed, self.lines - self.completed
        if self.job is None:
            return 0, 0
        counts = self.job.counts
        return counts.done * self.lines // counts.total, counts.failed * self.lines // counts.total

    def has(self, kind: str) -> bool:
        """Whether there is an `output` or an `error` file: once the lines were counted, and unless it is empty or deleted."""
        if self.completed is None or kind in self.deleted:
            return False
        return (self.completed if kind == "output" else self.lines - self.completed) > 0

    @classmethod
    def from_records(cls, job_id: str, record: dict[str, str], job: dict[str, str]) -> Self | None:
        """A batch from its own hash and that of its job; None when they contradict, as it is being removed."""
        failed = "errors" in record
        if not failed and (not job or "created_at" not in record):
            return None
        return cls(
            id=batch_of(job_id),
            tenant=record["tenant"],
            input_file_id=record["input_file_id"],
            endpoint=record["endpoint"],
            completion_window=record["completion_window"],
            metadata=json.loads(record["metadata"]),
            created_at=int(record["created_at"]) / 1000,
            deadline=int(record["deadline"]) / 1000 if "deadline" in record else None,
            lines=int(record["lines"]),
            blocks=int(record["blocks"]),
            job=None if failed else Job.from_record(job_id, job),
            lapsed="expired" in record,
            errors=tuple(json.loads(record["errors"])) if failed else (),
            completed=int(record["completed"]) if "completed" in record else None,
            sizes={kind: tuple(json.loads(record[f"sizes:{kind}"])) for kind in ("output", "error") if f"sizes:{kind}" in record},
            deleted=frozenset(kind for kind in ("output", "error") if f"deleted:{kind}" in record),
        )


@dataclass(frozen=True)
class NewBatch:
    """What makes a job a batch."""

    tenant: str
    input_file_id: str
    endpoint: str
    completion_window: str
    window_seconds: int
    metadata: dict[str, str] | None

    def record(self, lines: int, blocks: int) -> dict[str, Any]:
        return vars(self) | {"metadata": json.dumps(self.metadata), "lines": lines, "blocks": blocks}


class Batches:
    """All batches.

    Raises:
        LedgerUnavailable: from every method, when Redis is out of reach, full or refuses.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    # A batch comes ------------------------------------------------------------------------------------------------

    @_translated
    def stage_lines(self, job_id: str, number: int, block: LineBlock) -> None:
        """Store lines of a batch that is not submitted yet. `Ledger.unstage` drops them, or they vanish by themselves."""
        name = self._ledger._key("lines", job_id)
        with self._ledger._redis.pipeline(transaction=True) as pipe:
            pipe.hset(name, str(number), block.pack())
            pipe.pexpire(name, _milliseconds(STAGED_SECONDS))
            pipe.execute()

    @_translated
    def stage(self, job_id: str, batch: NewBatch, *, lines: int, blocks: int) -> None:
        """Have the job be a batch when it is submitted, which is the next thing to do."""
        name, lines_name = self._ledger._key("batch", job_id), self._ledger._key("lines", job_id)
        with self._ledger._redis.pipeline(transaction=True) as pipe:
            pipe.hset(name, items=[part for pair in batch.record(lines, blocks).items() for part in pair])
            pipe.pexpire(name, _milliseconds(STAGED_SECONDS))
            pipe.pexpire(lines_name, _milliseconds(STAGED_SECONDS))
            pipe.execute()

    @_translated
    def reject(self, job_id: str, batch: NewBatch, errors: list[dict[str, Any]], *, ttl_seconds: int, notify: str = "") -> None:
        """Keep a batch whose file cannot be embedded, and why; `notify` as for `NewJob`."""
        record = batch.record(0, 0) | {"errors": json.dumps(errors)}
        fields = [part for pair in record.items() for part in pair]
        self._ledger._run("reject", job_id, batch.tenant, _milliseconds(ttl_seconds), notify, *fields)

    # A batch is there ---------------------------------------------------------------------------------------------

    @_translated
    def get(self, batch_id: str, tenant: str) -> Batch:
        """The batch, after its deadline was heeded.

        Raises:
            BatchNotFound: no such batch, another tenant's, or expired.
        """
        self._ledger._run("lapse")
        found = self._find([job_of(batch_id)])[0]
        if found is None or found.tenant != tenant or found.id != batch_id:
            raise batch_not_found(batch_id)
        return found

    @_translated
    def page(self, tenant: str, *, after: str = "", limit: int = 20) -> tuple[list[Batch], bool]:
        """Batches newest first, after batch `after`, and whether there are more.

        Raises:
            BatchNotFound: `after` is no batch of the tenant.
        """
        self._ledger._run("lapse")
        index, position = self._ledger._key("batches", tenant), 0
        if after:
            rank: Any = self._ledger._redis.zrevrank(index, job_of(after))
            if rank is None:
                raise batch_not_found(after, param="after")
            position = rank + 1
        ids = [_text(name) for name in self._ledger._redis.zrevrange(index, position, position + limit)]
        return [batch for batch in self._find(ids[:limit]) if batch is not None], len(ids) > limit

    @_translated
    def find(self, batch_ids: list[str]) -> dict[str, Batch]:
        """Those of the batches that are there, by id; of a tenant whose index named them."""
        return {batch.id: batch for batch in self._find([job_of(batch_id) for batch_id in batch_ids]) if batch is not None}

    def _find(self, job_ids: list[str]) -> list[Batch | None]:
        with self._ledger._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hgetall(self._ledger._key("batch", job_id))
                pipe.hgetall(self._ledger._key("job", job_id))
            found = [_record(record) for record in pipe.execute()]
        pairs = zip(job_ids, found[::2], found[1::2], strict=True)
        return [Batch.from_records(job_id, record, job) if record else None for job_id, record, job in pairs]

    def cancel(self, batch_id: str, tenant: str) -> Batch:
        """The batch, cancelled. Cancelling it again changes nothing.

        Raises:
            BatchEnded: it had come to another end before.
            BatchNotFound: no such batch.
        """
        batch = self.get(batch_id, tenant)
        try:
            cancelled = batch.job is not None and self._ledger.cancel(batch.job.id, tenant)[1]
        except JobNotFound:
            raise batch_not_found(batch_id) from None
        batch = self.get(batch_id, tenant)
        if cancelled or batch.status == "cancelled":
            return batch
        raise BatchEnded(f"batch {batch_id} is {batch.status} already and cannot be cancelled", param="id")

    @_translated
    def lines(self, batch: Batch, start: int = 0) -> Iterator[LineBlock]:
        """Its line blocks from number `start` on, one by one.

        Raises:
            BatchNotFound: it was deleted or has expired meanwhile; from the iterator.
        """
        return (self._lines(batch, number) for number in range(start, batch.blocks))

    @_translated
    def _lines(self, batch: Batch, number: int) -> LineBlock:
        block: Any = self._ledger._redis.hget(self._ledger._key("lines", job_of(batch.id)), str(number))
        if block is None:
            raise batch_not_found(batch.id)
        return LineBlock.unpack(block)

    @_translated
    def errors(self, batch: Batch) -> tuple[InputError, ...]:
        """The first failed inputs of its job."""
        found = self._ledger._redis.lrange(self._ledger._key("errors", job_of(batch.id)), 0, SHOWN_ERRORS - 1)
        return tuple(InputError(**json.loads(error)) for error in found)

    @_translated
    def note(self, batch: Batch, **found: Any) -> None:
        """Keep what was found out about an ended batch: `completed`, or `sizes` of its files."""
        values = {"completed": found.get("completed")} | {
            f"sizes:{kind}": json.dumps(sizes) for kind, sizes in found.get("sizes", {}).items()
        }
        fields = [part for name, value in values.items() if value is not None for part in (name, value)]
        self._ledger._run("note", job_of(batch.id), *fields)

    @_translated
    def delete_file(self, batch: Batch, kind: str) -> bool:
        """Delete its `output` or `error` file. With the last of them the results of its job go. Returns whether it was there."""
        return bool(self._ledger._run("withdraw", job_of(batch.id), batch.tenant, kind))


def job_of(batch_id: str) -> str:
    """The id of a batch's job."""
    return f"job_{batch_id.removeprefix('batch_')}"


def batch_of(job_id: str) -> str:
    """The id of the batch that a job is."""
    return f"batch_{job_id.removeprefix('job_')}"


def batch_not_found(batch_id: str, param: str = "id") -> BatchNotFound:
    shown = batch_id if len(batch_id) <= 64 else batch_id[:64] + "…"
    return BatchNotFound(f"no batch {shown!r}; it never existed, was deleted, or its lifetime is over", param=param)
