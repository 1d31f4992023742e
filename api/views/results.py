"""Read the vectors of a job."""

from typing import Annotated, Literal

from flask import Blueprint, Response, request
from pydantic import Field
from typing_extensions import TypedDict
from werkzeug.exceptions import NotAcceptable

from api.answers import streamed
from api.openapi import Answer, describes
from api.queries import MOST_WHOLE, Offset, Query
from api.records import FailedItem, ResultPage, VectorItem
from api.results import (
    MEDIA_TYPES,
    Page,
    as_base64,
    as_floats,
    find_page,
    read_parts,
    started,
    write_json,
    write_ndjson,
    write_npy,
)
from api.schemas import JobId
from api.services import services, tenant_of
from core.errors import JobNotFound, JobNotReady, ResultStoreUnavailable
from core.jobs import JobStatus

views = Blueprint("results", __name__)

ACCEPTED = {
    "application/json": "json",
    "application/x-ndjson": "ndjson",
    "application/x-npy": "npy",
    "application/octet-stream": "npy",
}


class PageQuery(TypedDict, total=False):
    offset: Offset
    limit: Annotated[int, Field(ge=1, le=MOST_WHOLE)]
    format: Annotated[Literal["json", "base64", "ndjson", "npy"], Field(description="Otherwise `Accept` decides.")]


PAGE_HEADERS = {
    "X-Vector-Count": int,
    "X-Vector-Total": int,
    "X-Vector-Ready": int,
    "X-Job-Status": JobStatus,
    "X-Next-Offset": int | None,
    "Retry-After": int | None,
}

CONTENT = {
    MEDIA_TYPES["json"]: ResultPage,
    MEDIA_TYPES["ndjson"]: Annotated[list[VectorItem | FailedItem], Field(description="One item a line.")],
    MEDIA_TYPES["npy"]: bytes,
}


@views.get("/v1/jobs/<job_id>/result")
@describes(
    {200: Answer("The page, in the format that was asked for.", CONTENT, PAGE_HEADERS)},
    query=(PageQuery,),
    errors=(JobNotFound, NotAcceptable, JobNotReady, ResultStoreUnavailable),
)
def show(job_id: JobId) -> Response:
    """Read the vectors, a page of them, as far as they are ready.

    A running job can be read, too: `next_offset` says where to go on. `npy` is for `numpy.load`: float32, a row for each input,
    NaN where it failed. In `base64` the numbers are little-endian float32.
    """
    query = Query(request.args, PageQuery.__annotations__)
    chosen = query.one_of("format", tuple(MEDIA_TYPES)) or _accepted_format()
    offset, limit = query.whole("offset", 0), query.whole("limit", None, minimum=1)
    page = find_page(services().ledger, job_id, tenant_of(request), offset=offset, limit=limit)
    return _answer(page, chosen)


def _accepted_format() -> str:
    if not request.accept_mimetypes:
        return "json"
    found = request.accept_mimetypes.best_match(list(ACCEPTED))
    if found is None:
        raise NotAcceptable(f"Accept must allow one of {', '.join(ACCEPTED)}; or use ?format={'|'.join(MEDIA_TYPES)}")
    return ACCEPTED[found]


def _answer(page: Page, chosen: str) -> Response:
    headers = _headers(page)
    parts = started(read_parts(services().ledger, page.job.id, page.spans, page.offset, page.end))
    if chosen == "npy":
        file = write_npy(page, parts)
        return streamed(file.pieces, MEDIA_TYPES[chosen], headers | {"Content-Length": str(file.size_bytes)})
    if chosen == "ndjson":
        return streamed(write_ndjson(parts), MEDIA_TYPES[chosen], headers)
    return streamed(write_json(page, parts, as_base64 if chosen == "base64" else as_floats), MEDIA_TYPES[chosen], headers)


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
