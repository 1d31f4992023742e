"""The two files of an ended batch, made of its job's results when they are read: one shard's result is held at a time.

Every line of the input is in one of them: with its vectors in `output`, or with what went wrong in `error`. An id and a line's
bytes follow from the batch alone, so a file has the same bytes whenever it is read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import orjson

from api.errors import INVALID, SERVER
from api.results import as_base64, as_numbers
from core.blocks import ResultBlock
from core.jobs import InputError, Job, JobStatus
from core.ledger import Batch, Batches, Ledger
from core.sharding import Span

PIECE_BYTES = 65_536
"""About how much is sent at a time."""

CLIENT_FAULTS = ("text_too_long", "no_room_for_text", "unknown_prompt", "dimensions_too_large")
"""Codes of inputs that failed for what their client sent."""

MISSING = {
    "expired": ("batch_expired", "the completion window was over before this line was embedded"),
    "cancelled": ("batch_cancelled", "the batch was cancelled before this line was embedded"),
}

OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE


class Failure(NamedTuple):
    """Why a line has no vectors; `error` is None when the batch ended before it."""

    position: int
    """Of the input at fault in the line."""
    error: InputError | None


class Part:
    """The result of one shard, read when it is first looked into."""

    def __init__(self, ledger: Ledger, job_id: str, span: Span) -> None:
        self._ledger = ledger
        self._job_id = job_id
        self.span = span

    @cached_property
    def block(self) -> ResultBlock:
        return self._ledger.result(self._job_id, self.span)

    def error(self, index: int) -> InputError | None:
        return self.block.errors.get(index - self.span.first)

    def vector(self, index: int) -> tuple[Any, int]:
        """Vector and tokens of an input of the job."""
        block, position = self.block, index - self.span.first
        start = 4 * block.dimensions * position
        return np.frombuffer(block.vectors, "<f4", block.dimensions, start), block.tokens[position]


class Results:
    """What became of a job's inputs, which are asked for in rising order.

    Args:
        failed: the inputs without a vector; None when they are too many to know them without looking.
    """

    def __init__(self, ledger: Ledger, job: Job, failed: frozenset[int] | None) -> None:
        self._parts = (Part(ledger, job.id, span) for span in ledger.finished(job.id))
        self._part: Part | None = None
        self._failed = failed

    def find(self, first: int, count: int) -> Failure | list[Part]:
        """For each of `count` inputs the part it is in; or why the line that they are has no vectors."""
        found = []
        for index in range(first, first + count):
            part = self._find(index)
            if part is None:
                return Failure(index - first, None)
            if (self._failed is None or index in self._failed) and (error := part.error(index)):
                return Failure(index - first, error)
            found.append(part)
        return found

    def _find(self, index: int) -> Part | None:
        """The part of an input that has ended."""
        while self._part is None or self._part.span.end <= index:
            self._part = next(self._parts, None)
            if self._part is None:
                return None
        return self._part if self._part.span.first <= index else None


class Line(NamedTuple):
    custom_id: str
    first: int
    inputs: int
    base64: bool


class BatchFile:
    """The `output` or `error` file of a batch that has ended.

    Raises:
        BatchNotFound, JobNotFound: the batch was deleted meanwhile; also from the iterators.
    """

    def __init__(self, ledger: Ledger, batches: Batches, batch: Batch, kind: str) -> None:
        assert batch.job is not None
        self._ledger = ledger
        self._batches = batches
        self.batch = batch
        self.kind = kind
        self._job = batch.job
        self._hex = batch.id.removeprefix("batch_")
        self.id = f"file-{kind}-{self._hex}"
        self.filename = f"{batch.id}_{kind}.jsonl"
        self.purpose = "batch_output"
        self.created_at = batch.job.ended_at or 0.0
        self.expires_at = batch.job.expires_at or 0.0

    @property
    def known_bytes(self) -> int | None:
        """How long it is, if that is known already."""
        return sum(self._sizes) if self._sizes else None

    @property
    def _sizes(self) -> Sequence[int]:
        return (self.batch.sizes or {}).get(self.kind, ())

    def read(self) -> Iterator[bytes]:
        """All of it. Who reads to the end leaves its size behind."""
        sizes = [0] * self.batch.blocks
        for number, piece in self._pieces(0):
            sizes[number] += len(piece)
            yield piece
        if not self._sizes:
            self._batches.note(self.batch, sizes={self.kind: sizes})
            self.batch = replace(self.batch, sizes=(self.batch.sizes or {}) | {self.kind: tuple(sizes)})

    def read_range(self, start: int, stop: int) -> Iterator[bytes]:
        """Bytes `start` to `stop` (exclusive). Its size must be known. At most one line block is made for nothing."""
        block, position = 0, 0
        while block < len(self._sizes) and position + self._sizes[block] <= start:
            position += self._sizes[block]
            block += 1
        for _, piece in self._pieces(block):
            if position + len(piece) > start:
                yield piece[max(0, start - position) : stop - position]
            position += len(piece)
            if position >= stop:
                return

    def _pieces(self, start: int) -> Iterator[tuple[int, bytes]]:
        """From line block `start` on: its number, and some of what it makes."""
        results = Results(self._ledger, self._job, failed_inputs(self._batches, self.batch))
        for number, block in enumerate(self._batches.lines(self.batch, start), start):
            held, size, first = list[bytes](), 0, block.first
            for custom_id, count, base64 in zip(block.ids, block.counts, block.base64, strict=True):
                made = self._line(results, Line(custom_id, first, count, base64))
                first += count
                held.append(made)
                size += len(made)
                if size >= PIECE_BYTES:
                    yield number, b"".join(held)
                    held, size = [], 0
            if size:
                yield number, b"".join(held)

    def _line(self, results: Results, line: Line) -> bytes:
        """The line in this file; nothing when it is in the other one."""
        found = results.find(line.first, line.inputs)
        if isinstance(found, Failure) == (self.kind == "output"):
            return b""
        if not isinstance(found, Failure):
            status, body = 200, self._embeddings(found, line)
        elif found.error is None:
            code, message = MISSING[self.batch.status]
            return self._dump(line, None, {"code": code, "message": message})
        else:
            status, body = _error(found.position, found.error)
        response = {"status_code": status, "request_id": f"req_{self._hex}_{line.first}", "body": body}
        return self._dump(line, response, None)

    def _dump(self, line: Line, response: dict[str, Any] | None, error: dict[str, str] | None) -> bytes:
        record = {"id": f"batch_req_{self._hex}_{line.first}", "custom_id": line.custom_id, "response": response, "error": error}
        return orjson.dumps(record, option=OPTIONS)

    def _embeddings(self, parts: Sequence[Part], line: Line) -> dict[str, Any]:
        shape = as_base64 if line.base64 else as_numbers
        data, tokens = list[dict[str, Any]](), 0
        for index, part in enumerate(parts):
            vector, count = part.vector(line.first + index)
            data.append({"object": "embedding", "index": index, "embedding": shape(vector)})
            tokens += count
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": self._job.model, "usage": usage}


def _error(position: int, error: InputError) -> tuple[int, dict[str, Any]]:
    status, kind = (400, INVALID) if error.code in CLIENT_FAULTS else (500, SERVER)
    return status, {"error": {"message": error.message, "type": kind, "param": f"input[{position}]", "code": error.code}}


def failed_inputs(batches: Batches, batch: Batch) -> frozenset[int] | None:
    """Which inputs of an ended batch failed; None when they are more than the job's record tells."""
    assert batch.job is not None
    if not batch.job.counts.failed:
        return frozenset()
    known = batches.errors(batch)
    return frozenset(error.index for error in known) if len(known) == batch.job.counts.failed else None


def settled(ledger: Ledger, batches: Batches, batch: Batch) -> Batch:
    """The batch with its lines counted, if it has ended. That is done once and kept."""
    job = batch.job
    if job is None or not job.status.ended or batch.completed is not None:
        return batch
    completed = batch.lines
    if job.counts.failed or job.status is JobStatus.CANCELLED:
        results = Results(ledger, job, failed_inputs(batches, batch))
        completed = 0
        for block in batches.lines(batch):
            first = block.first
            for count in block.counts:
                completed += not isinstance(results.find(first, count), Failure)
                first += count
    batches.note(batch, completed=completed)
    return replace(batch, completed=completed)
