"""Read the vectors of a job."""

from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
import orjson
from flask import Blueprint, Response, request
from pydantic import Field
from typing_extensions import TypedDict
from werkzeug.exceptions import NotAcceptable

from api import tables
from api.answers import JSON, streamed
from api.conditions import asked_range, etag_of, unchanged
from api.dtypes import DTYPES, Dtype
from api.manifest import write_manifest
from api.npy import NpyFile
from api.openapi import Answer, describes
from api.queries import MOST_WHOLE, Offset, Query
from api.records import FailedItem, Manifest, ResultPage, VectorItem
from api.results import (
    MEDIA_TYPES,
    Page,
    Part,
    as_base64,
    as_numbers,
    find_page,
    read_parts,
    started,
    write_json,
    write_ndjson,
)
from api.schemas import JobId
from api.services import services, tenant_of
from core.errors import JobNotFound, JobNotReady, PlacesFull, RangeNotSatisfiable, ResultStoreUnavailable
from core.jobs import JobStatus

views = Blueprint("results", __name__)

ACCEPTED = {
    "application/json": "json",
    "application/x-ndjson": "ndjson",
    "application/x-npy": "npy",
    "application/octet-stream": "npy",
    "application/vnd.apache.arrow.stream": "arrow",
    "application/vnd.apache.parquet": "parquet",
}


class PageQuery(TypedDict, total=False):
    offset: Offset
    limit: Annotated[int, Field(ge=1, le=MOST_WHOLE)]
    format: Annotated[
        Literal["json", "base64", "ndjson", "npy", "arrow", "parquet"], Field(description="Otherwise `Accept` decides.")
    ]
    dtype: Annotated[Literal["float32", "float16", "int8", "binary"], Field(description="What numbers vectors are given out in.")]


PAGE_HEADERS = {
    "X-Vector-Count": int,
    "X-Vector-Total": int,
    "X-Vector-Ready": int,
    "X-Job-Status": JobStatus,
    "X-Next-Offset": int | None,
    "Retry-After": int | None,
    "ETag": Annotated[str | None, Field(description="Of a job that has ended.")],
    "Accept-Ranges": Annotated[Literal["bytes", "none"] | None, Field(description="Of npy; `none` while the job runs.")],
}
PART_HEADERS = PAGE_HEADERS | {"Content-Range": str}
TAGGED = {"ETag": str}

CONTENT = {
    MEDIA_TYPES["json"]: ResultPage,
    MEDIA_TYPES["ndjson"]: Annotated[list[VectorItem | FailedItem], Field(description="One item a line.")],
    MEDIA_TYPES["npy"]: bytes,
    MEDIA_TYPES["arrow"]: bytes,
    MEDIA_TYPES["parquet"]: bytes,
}


@views.get("/v1/jobs/<job_id>/result")
@describes(
    {
        200: Answer("The page, in the format that was asked for.", CONTENT, PAGE_HEADERS),
        206: Answer(
            "The part of the npy file that was asked for.", {MEDIA_TYPES["npy"]: bytes}, PAGE_HEADERS | {"Content-Range": str}
        ),
        304: Answer("The client has it already.", headers=TAGGED),
    },
    query=(PageQuery,),
    headers={"Range": str, "If-Range": str, "If-None-Match": str},
    errors=(JobNotFound, NotAcceptable, JobNotReady, PlacesFull, RangeNotSatisfiable, ResultStoreUnavailable),
)
def show(job_id: JobId) -> Response:
    """Read the vectors, a page of them, as far as they are ready.

    A running job can be read, too: `next_offset` says where to go on. `npy` is for `numpy.load`: a row for each input, NaN
    where it failed. `base64` is of the little-endian numbers. `arrow` and `parquet` are tables, where the service has pyarrow.
    """
    query = Query(request.args, PageQuery.__annotations__)
    chosen = query.one_of("format", tuple(MEDIA_TYPES)) or _accepted_format()
    dtype = DTYPES[query.one_of("dtype", tuple(DTYPES)) or "float32"]
    offset, limit = query.whole("offset", 0), query.whole("limit", None, minimum=1)
    page = find_page(services().ledger, job_id, tenant_of(request), offset=offset, limit=limit)
    etag = etag_of(page.job, chosen, _writer(chosen), dtype.name, page.offset, page.end)
    return unchanged(request, etag) or _answer(page, chosen, dtype, etag)


def _accepted_format() -> str:
    if not request.accept_mimetypes:
        return "json"
    found = request.accept_mimetypes.best_match(list(ACCEPTED))
    if found is None:
        raise NotAcceptable(f"Accept must allow one of {', '.join(ACCEPTED)}; or use ?format={'|'.join(MEDIA_TYPES)}")
    return ACCEPTED[found]


def _writer(chosen: str) -> str:
    """What the bytes depend on beside our own code."""
    if chosen in ("arrow", "parquet"):
        return tables.version()
    return np.__version__ if chosen == "npy" else orjson.__version__


def _answer(page: Page, chosen: str, dtype: Dtype, etag: str | None) -> Response:
    headers = _headers(page) | ({"ETag": etag} if etag else {})
    if chosen == "npy":
        return _answer_npy(page, dtype, etag, headers)
    if chosen in ("arrow", "parquet"):
        return _answer_table(page, chosen, dtype, headers)
    if chosen == "ndjson":
        return streamed(write_ndjson(_parts(page), dtype), MEDIA_TYPES[chosen], headers)
    embedding = as_base64 if chosen == "base64" else as_numbers
    return streamed(write_json(page, _parts(page), dtype, embedding), MEDIA_TYPES[chosen], headers)


def _answer_table(page: Page, chosen: str, dtype: Dtype, headers: dict[str, str]) -> Response:
    table, parts = tables.open_table(page, dtype), _parts(page)
    place = services().tables.require()
    write = tables.write_arrow if chosen == "arrow" else tables.write_parquet
    answer = streamed(write(table, parts), MEDIA_TYPES[chosen], headers)
    answer.call_on_close(place.close)
    return answer


def _answer_npy(page: Page, dtype: Dtype, etag: str | None, headers: dict[str, str]) -> Response:
    file = NpyFile.of(page, dtype)
    asked = asked_range(request, etag, file.size_bytes) if etag else None
    start, stop = (asked.start, asked.stop) if asked else (0, file.size_bytes)
    pieces = file.read(lambda offset, end: _parts(page, offset, end), start, stop)
    headers |= {"Content-Length": str(stop - start), "Accept-Ranges": "bytes" if etag else "none"}
    return streamed(pieces, MEDIA_TYPES["npy"], {**headers, **(asked.headers if asked else {})}, 206 if asked else 200)


def _parts(page: Page, offset: int | None = None, end: int | None = None) -> Iterator[Part]:
    """The page's blocks, or those of inputs `offset` to `end`; the first is read, so that its error is an answer of its own."""
    first, last = page.offset if offset is None else offset, page.end if end is None else end
    return started(read_parts(services().ledger, page.job.id, page.spans, first, last))


def _headers(page: Page) -> dict[str, str]:
    headers = {
        "X-Vector-Count": str(page.count),
        "X-Vector-Total": str(page.job.counts.total),
        "X-Vector-Ready": str(page.ready),
        "X-Job-Status": page.job.status.value,
    }
    if page.next_offset is not None:
        headers["X-Next-Offset"] = str(page.next_offset)
    if not page.count and not page.job.status.ended:
        headers["Retry-After"] = "1"
    return headers


@views.get("/v1/jobs/<job_id>/manifest")
@describes(
    {200: Answer("The manifest.", Manifest, TAGGED), 304: Answer("The client has it already.", headers=TAGGED)},
    headers={"If-None-Match": str},
    errors=(JobNotFound, JobNotReady, ResultStoreUnavailable),
)
def show_manifest(job_id: JobId) -> Response:
    """See what the vectors of an ended job are.

    With the SHA-256 of the float32 vectors of each shard, and of the whole npy file.
    """
    Query(request.args, ())
    page = find_page(services().ledger, job_id, tenant_of(request), offset=0, limit=None)
    etag = etag_of(page.job, "manifest")
    if etag is None:
        raise JobNotReady(f"the job is {page.job.status.value}; its manifest is made when it has ended")
    return unchanged(request, etag) or streamed(_write_manifest(page), JSON, {"ETag": etag})


def _write_manifest(page: Page) -> Iterator[bytes]:
    ledger, job_id = services().ledger, page.job.id
    return write_manifest(page, started(read_parts(ledger, job_id, ledger.finished(job_id), 0, page.job.counts.total)))
