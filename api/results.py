"""The vectors of a job as pages, streamed: one shard's result is held at a time.

Here as JSON; `api.npy` and `api.tables` write the other formats.
"""

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import orjson

from api.dtypes import FLOAT32, Array, Dtype, vectors_of
from api.schemas import job_record
from core.blocks import ResultBlock
from core.errors import InvalidRequest, JobNotFound, JobNotReady
from core.jobs import Job
from core.ledger import Ledger
from core.sharding import Span, covering

PIECE_FLOATS = 65_536
"""Numbers turned into JSON at a time."""

MEDIA_TYPES = {
    "json": "application/json",
    "base64": "application/json",
    "ndjson": "application/x-ndjson",
    "npy": "application/x-npy",
    "arrow": "application/vnd.apache.arrow.stream",
    "parquet": "application/vnd.apache.parquet",
}

T = TypeVar("T")


@dataclass(frozen=True)
class Page:
    """A part of a job's result, inputs `offset` to `end` (exclusive), as far as it can be read."""

    job: Job
    offset: int
    end: int
    ready: int
    """The first input from `offset` on that has not ended."""
    next_offset: int | None
    """Where to read on; None when there is nothing more, now or later."""
    spans: tuple[Span, ...]

    @property
    def count(self) -> int:
        return self.end - self.offset

    @property
    def complete(self) -> bool:
        return self.end == self.job.counts.total and self.job.status.ended


class Part(NamedTuple):
    """Inputs of one shard that belong to the page: positions `start` to `stop` of its block."""

    first: int
    """Index in the job of the block's first input."""
    block: ResultBlock
    start: int
    stop: int


def find_page(ledger: Ledger, job_id: str, tenant: str, *, offset: int, limit: int | None) -> Page:
    """The page of up to `limit` inputs from `offset`, up to the first one that has not ended.

    Raises:
        InvalidRequest: the offset lies beyond the job's end, or it is a dry run.
        JobNotFound: no such job, or its vectors were deleted with the files of its batch.
    """
    job = ledger.get(job_id, tenant)
    if job.options.dry_run:
        raise InvalidRequest(
            "the job is a dry run: it has no vectors, and its figures are in its record", param="id", code="dry_run"
        )
    total = job.counts.total
    if offset > total:
        raise InvalidRequest(f"offset must be at most {total}, the job's number of inputs, got {offset}", param="offset")
    spans = ledger.finished(job_id)
    missing = total - sum(span.count for span in spans)
    if (missing == 0) != job.status.ended:
        job = ledger.get(job_id, tenant)  # it ended between the two reads, or is gone
    counts = job.counts
    if job.status.ended and not spans and counts.done + counts.failed and not (spans := ledger.finished(job_id)):
        raise JobNotFound("the vectors of this job were deleted with the files of its batch", param="id", code="vectors_deleted")
    found = covering(spans, offset, total)
    ready = found[-1].end if found else offset
    end = ready if limit is None else min(ready, offset + limit)
    chosen = tuple(span for span in found if span.first < end)
    return Page(job, offset, end, ready, _next_offset(job, spans, end), chosen)


def _next_offset(job: Job, spans: Iterable[Span], end: int) -> int | None:
    if end == job.counts.total:
        return None
    if not job.status.ended:
        return end
    # A cancelled job has gaps that nothing will fill: read on behind the next one.
    return min((max(span.first, end) for span in spans if span.end > end), default=None)


def read_parts(ledger: Ledger, job_id: str, spans: Iterable[Span], offset: int, end: int) -> Iterator[Part]:
    """The blocks of the spans that hold inputs `offset` to `end` (exclusive), read one by one as they are asked for.

    Raises:
        JobNotFound: the job was deleted or expired meanwhile; also from the iterator.
    """
    for span in spans:
        if span.end <= offset or span.first >= end:
            continue
        start, stop = max(offset, span.first) - span.first, min(end, span.end) - span.first
        yield Part(span.first, ledger.result(job_id, span), start, stop)


def started(parts: Iterator[T]) -> Iterator[T]:
    """The same, with the first one read: an error can still become an answer of its own."""
    for first in parts:
        return chain([first], parts)
    return parts


def dimensions_of(job: Job) -> int:
    """The length of the job's vectors, for formats that begin with it.

    Raises:
        JobNotReady: no shard is finished, so nobody knows it yet.
        InvalidRequest: nobody ever will.
    """
    if job.dimensions is not None:
        return job.dimensions
    if job.status.ended:
        raise InvalidRequest("the job ended before anything of it was finished; format json tells so, too", param="format")
    raise JobNotReady("nothing of the job is finished yet, so the array's shape is unknown")


# Formats --------------------------------------------------------------------------------------------------------------


Embedding = Callable[[Array], Any]


def as_numbers(row: Array) -> Any:
    """What orjson writes as the shortest decimals that read back as the same float32."""
    return row


def as_base64(row: Array) -> Any:
    """Base64 of the little-endian numbers."""
    return base64.b64encode(row.tobytes()).decode()


def write_json(page: Page, parts: Iterator[Part], dtype: Dtype, embedding: Embedding) -> Iterator[bytes]:
    """The page as one JSON object, with all that is known about the page in front of the data."""
    head = {
        "object": "list",
        "job": page.job.id,
        "status": page.job.status.value,
        "offset": page.offset,
        "count": page.count,
        "total": page.job.counts.total,
        "next_offset": page.next_offset,
        "ready": page.ready,
        "complete": page.complete,
    }
    return _write_object(head, parts, dtype, embedding)


def write_job(job: Job, parts: Iterator[Part]) -> Iterator[bytes]:
    """The job's record with the vectors in it."""
    return _write_object(job_record(job), parts, FLOAT32, as_numbers)


def _write_object(head: Mapping[str, Any], parts: Iterator[Part], dtype: Dtype, embedding: Embedding) -> Iterator[bytes]:
    between = orjson.dumps(head)[:-1] + b',"data":['
    for items in _items(parts, dtype, embedding):
        yield between
        yield orjson.dumps(items, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
        between = b","
    yield b"]}" if between == b"," else between + b"]}"


def write_ndjson(parts: Iterator[Part], dtype: Dtype) -> Iterator[bytes]:
    """One item a line."""
    option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    for items in _items(parts, dtype, as_numbers):
        yield b"".join(orjson.dumps(item, option=option) for item in items)


def _items(parts: Iterator[Part], dtype: Dtype, embedding: Embedding) -> Iterator[list[dict[str, Any]]]:
    """Items of a few inputs at a time, so that little JSON is held at once."""
    for part in parts:
        step = max(1, PIECE_FLOATS // max(1, part.block.dimensions))
        for start in range(part.start, part.stop, step):
            yield _piece(part._replace(start=start, stop=min(start + step, part.stop)), dtype, embedding)


def _piece(part: Part, dtype: Dtype, embedding: Embedding) -> list[dict[str, Any]]:
    block = part.block
    rows, scales = dtype.of(vectors_of(block, block.dimensions, part.start, part.stop))
    items = []
    for row, position in enumerate(range(part.start, part.stop)):
        item: dict[str, Any] = {"index": part.first + position, "id": block.ids[position] if block.ids else None}
        if error := block.errors.get(position):
            item["error"] = {"code": error.code, "message": error.message, "retryable": error.retryable}
        else:
            item["embedding"] = embedding(rows[row])
            if scales is not None:
                item["scale"] = scales[row]
            item |= {"tokens": block.tokens[position], "truncated": position in block.truncated}
            if position in block.chunks:
                item["chunks"] = block.chunks[position]
        items.append(item)
    return items
