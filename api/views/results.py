"""Read the vectors of a job."""

from flask import Blueprint, Response, request
from werkzeug.exceptions import NotAcceptable

from api.answers import streamed
from api.queries import Query
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
from api.services import services, tenant_of

views = Blueprint("results", __name__)

ACCEPTED = {
    "application/json": "json",
    "application/x-ndjson": "ndjson",
    "application/x-npy": "npy",
    "application/octet-stream": "npy",
}


@views.get("/v1/jobs/<job_id>/result")
def show(job_id: str) -> Response:
    """A page of the result, as far as it is ready. A running job can be read; `next_offset` says where to go on."""
    query = Query(request.args, ("offset", "limit", "format"))
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
