"""Follow a job while it runs."""

from flask import Blueprint, Response, request

from api.answers import streamed
from api.progress import END, MEDIA_TYPE, write_events
from api.queries import Query
from api.services import services, tenant_of

views = Blueprint("events", __name__)

HEADERS = {"X-Accel-Buffering": "no"}
"""nginx, and what understands it, would collect the events otherwise."""


@views.get("/v1/jobs/<job_id>/events")
def follow(job_id: str) -> Response:
    """The job's progress as server-sent events, until it ends."""
    Query(request.args, ())
    ledger, ended, tenant = services().ledger, services().ended, tenant_of(request)
    job = ledger.get(job_id, tenant)
    if job.status.ended:
        if request.headers.get("Last-Event-ID") == END:
            return Response(status=204)
        return streamed(write_events(lambda: job, iter([None])), MEDIA_TYPE, HEADERS)
    place = ended.require_place()
    answer = streamed(write_events(lambda: ledger.get(job_id, tenant), ended.ticks(job_id)), MEDIA_TYPE, HEADERS)
    answer.call_on_close(place.close)  # not in the generator, which may never have begun
    return answer
