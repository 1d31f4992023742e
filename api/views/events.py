"""Follow a job while it runs."""

from typing import Annotated, Any

from flask import Blueprint, Response, request
from pydantic import Field

from api.answers import streamed
from api.openapi import Answer, describes
from api.progress import END, MEDIA_TYPE, write_events
from api.queries import Query
from api.schemas import JobId
from api.services import services, tenant_of
from core.errors import JobNotFound, PlacesFull

views = Blueprint("events", __name__)

HEADERS = {"X-Accel-Buffering": "no"}
"""nginx, and what understands it, would collect the events otherwise."""


@views.get("/v1/jobs/<job_id>/events")
@describes(
    {
        200: Answer("The events `progress`, then `end` with the job's record, or `error`.", {MEDIA_TYPE: Any}),
        204: Answer("The job has ended, and the client has seen it."),
    },
    headers={"Last-Event-ID": Annotated[str, Field(description="`end`, if that has been seen.")]},
    errors=(JobNotFound, PlacesFull),
)
def follow(job_id: JobId) -> Response:
    """Follow a job's progress, as server-sent events, until it ends."""
    Query(request.args, ())
    ledger, ended, tenant = services().ledger, services().ended, tenant_of(request)
    job = ledger.get(job_id, tenant)
    if job.status.ended:
        if request.headers.get("Last-Event-ID") == END:
            return Response(status=204)
        return streamed(write_events(lambda: job, iter([None])), MEDIA_TYPE, HEADERS)
    place = ended.require_stream()
    answer = streamed(write_events(lambda: ledger.get(job_id, tenant), ended.ticks(job_id)), MEDIA_TYPE, HEADERS)
    answer.call_on_close(place.close)  # not in the generator, which may never have begun
    return answer
