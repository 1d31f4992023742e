"""The vectors of a job as pages in four formats, streamed: one shard's result is held at a time."""

import base64
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import numpy as np
import orjson

from api.schemas import job_record
from core.blocks import ResultBlock
from core.errors import InvalidRequest, JobNotReady
from core.jobs import Job
from core.ledger import Ledger
from core.sharding import Span, covering

PIECE_FLOATS = 65_536
"""Numbers turned into JSON at a time."""

FLOAT_BYTES = 4

MEDIA_TYPES = {
    "json": "application/json",
    "base64": "application/json",
    "ndjson": "application/x-ndjson",
    "npy": "application/x-npy",
}

Vector = np.ndarray[tuple[int], np.dtype[np.float32]]
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
        InvalidRequest: the offset lies beyond the job's end.
        JobNotFound: no such job.
    """
    job = ledger.get(job_id, tenant)
    total = job.counts.total
    if offset > total:
        raise InvalidRequest(f"offset must be at most {total}, the job's number of inputs, got {offset}", param="offset")
    spans = ledger.finished(job_id)
    missing = total - sum(span.count for span in spans)
    if (missing == 0) != job.status.ended:
        job = ledger.get(job_id, tenant)  # it ended between the two reads, or is gone
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
    """The blocks of the spans, read one by one as they are asked for.

    Raises:
        JobNotFound: the job was deleted or expired meanwhile; also from the iterator.
    """
    for span in spans:
        start, stop = max(offset, span.first) - span.first, min(end, span.end) - span.first
        yield Part(span.first, ledger.result(job_id, span), start, stop)


def started(parts: Iterator[T]) -> Iterator[T]:
    """The same, with the first one read: an error can still become an answer of its own."""
    for first in parts:
        return chain([first], parts)
    return parts


# Formats --------------------------------------------------------------------------------------------------------------


def as_floats(vector: Vector) -> Any:
    """What orjson writes as the shortest decimals that read back as the same float32."""
    return vector


def as_base64(vector: Vector) -> Any:
    """Base64 of the little-endian float32 numbers."""
    return base64.b64encode(vector.tobytes()).decode()


def write_json(page: Page, parts: Iterator[Part], embedding: Callable[[Vector], Any]) -> Iterator[bytes]:
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
    return _write_object(head, parts, embedding)


def write_job(job: Job, parts: Iterator[Part]) -> Iterator[bytes]:
    """The job's record with the vectors in it."""
    return _write_object(job_record(job), parts, as_floats)


def _write_object(head: Mapping[str, Any], parts: Iterator[Part], embedding: Callable[[Vector], Any]) -> Iterator[bytes]:
    between = orjson.dumps(head)[:-1] + b',"data":['
    for items in _items(parts, embedding):
        yield between
        yield orjson.dumps(items, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
        between = b","
    yield b"]}" if between == b"," else between + b"]}"


def write_ndjson(parts: Iterator[Part]) -> Iterator[bytes]:
    """One item a line."""
    option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    for items in _items(parts, as_floats):
        yield b"".join(orjson.dumps(item, option=option) for item in items)


def _items(parts: Iterator[Part], embedding: Callable[[Vector], Any]) -> Iterator[list[dict[str, Any]]]:
    """Items of a few inputs at a time, so that little JSON is held at once."""
    for part in parts:
        vectors = np.frombuffer(part.block.vectors, dtype="<f4").reshape(-1, max(1, part.block.dimensions))
        step = max(1, PIECE_FLOATS // max(1, part.block.dimensions))
        for start in range(part.start, part.stop, step):
            yield [_item(part, n, vectors, embedding) for n in range(start, min(start + step, part.stop))]


def _item(part: Part, position: int, vectors: Any, embedding: Callable[[Vector], Any]) -> dict[str, Any]:
    block = part.block
    item: dict[str, Any] = {"index": part.first + position, "id": block.ids[position] if block.ids else None}
    if error := block.errors.get(position):
        return item | {"error": {"code": error.code, "message": error.message, "retryable": error.retryable}}
    return item | {
        "embedding": embedding(vectors[position]),
        "tokens": block.tokens[position],
        "truncated": position in block.truncated,
    }


class NpyFile(NamedTuple):
    size_bytes: int
    pieces: Iterator[bytes]


def write_npy(page: Page, parts: Iterator[Part]) -> NpyFile:
    """The page as an array for `numpy.load`: float32, C order, (count, dimensions), NaN where an input failed.

    Raises:
        JobNotReady: no shard is finished, so nobody knows the dimensions yet.
    """
    dimensions = page.job.dimensions
    if dimensions is None:
        raise JobNotReady("nothing of the job is finished yet, so the array's shape is unknown")
    head = io.BytesIO()
    shape = (page.count, dimensions)
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
    size_bytes = head.tell() + FLOAT_BYTES * page.count * dimensions
    return NpyFile(size_bytes, chain([head.getvalue()], (_rows(part, dimensions) for part in parts)))


def _rows(part: Part, dimensions: int) -> bytes:
    width = FLOAT_BYTES * dimensions
    if part.block.dimensions != dimensions:  # a shard without any vector need not know the model's
        return np.full((part.stop - part.start, dimensions), np.nan, dtype="<f4").tobytes()
    return part.block.vectors[part.start * width : part.stop * width]
