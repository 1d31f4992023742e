"""Create, see, list and end jobs."""

from typing import Annotated

from flask import Blueprint, Response, request
from pydantic import Field
from typing_extensions import TypedDict
from werkzeug.exceptions import RequestTimeout, UnsupportedMediaType

from api.answers import JSON, json_answer, streamed
from api.bodies import Body, refusing
from api.openapi import Answer, describes
from api.queries import Query, SubmitQuery, WaitQuery
from api.records import DeletedJob, JobList, JobRecord, JobWithVectors
from api.results import read_parts, started, write_job
from api.schemas import OPTIONS, JobBody, JobId, JobRequest, Lines, job_list, job_record
from api.services import services, tenant_of
from api.submission import Accepted, IdempotencyKey, Replayed, Submission, read_idempotency_key
from core.errors import (
    BacklogFull,
    IdempotencyConflict,
    JobNotFound,
    ModelNotFound,
    PlacesFull,
    RequestTooLarge,
    ResultStoreUnavailable,
)
from core.jobs import Job, JobStatus
from core.webhooks import JOB_EVENTS

views = Blueprint("jobs", __name__, url_prefix="/v1/jobs")

NDJSON = "application/x-ndjson"
MOST_LISTED = 100


CREATED = {"Location": str, "Idempotent-Replayed": Replayed}
RETRY = {"Retry-After": Annotated[int | None, Field(description="Seconds after which to ask again; only while it lives.")]}


class ListQuery(TypedDict, total=False):
    status: JobStatus
    limit: Annotated[int, Field(ge=1, le=MOST_LISTED)]
    after: Annotated[str, Field(description="The `last_id` of the page before.")]


@views.post("")
@describes(
    {
        200: Answer("The job has ended within `wait`. A dry run has no vectors.", JobWithVectors | JobRecord, CREATED),
        202: Answer("The whole job is in Redis.", JobRecord, CREATED | RETRY),
    },
    query=(SubmitQuery, JobRequest),
    headers={"Idempotency-Key": IdempotencyKey},
    bodies={JSON: JobBody, NDJSON: Lines},
    errors=(
        ModelNotFound,
        RequestTimeout,
        IdempotencyConflict,
        RequestTooLarge,
        UnsupportedMediaType,
        BacklogFull,
        PlacesFull,
        ResultStoreUnavailable,
    ),
)
def create() -> Response:
    """Submit a job.

    As JSON, an object of the inputs and the options. As NDJSON, one input a line, read as a stream, with the options in the
    query; a JSON request may have only `wait` and `dry_run` there.
    """
    with refusing(request):
        _require_known_type()
        from_stream = request.mimetype == NDJSON
        query = Query(request.args, (*SubmitQuery.__annotations__, *(OPTIONS if from_stream else ())))
        wait_seconds = query.wait_seconds()
        submission = _submission(query, from_stream)
        accepted = submission.take_ndjson(query.options()) if from_stream else submission.take_json()
    return _answer_accepted(accepted, wait_seconds)


def _require_known_type() -> None:
    if request.mimetype not in (JSON, NDJSON):
        sent = f"got {request.mimetype[:64]!r}" if request.mimetype else "got none"
        raise UnsupportedMediaType(f"Content-Type must be {JSON} or {NDJSON}, {sent}")
    if request.content_encoding not in (None, "", "identity"):
        raise UnsupportedMediaType(f"Content-Encoding must be left out, got {request.content_encoding[:32]!r}")


def _submission(query: Query, from_stream: bool) -> Submission:
    settings = services().settings
    limit, setting = (
        (settings.max_stream_bytes, "MAX_STREAM_BYTES") if from_stream else (settings.max_body_bytes, "MAX_BODY_BYTES")
    )
    head = request.mimetype.encode() + b"\n" + query.canonical()
    body = Body(request, limit_bytes=limit, setting=setting, digest_head=head)
    key = read_idempotency_key(request.headers.get("Idempotency-Key"))
    dry_run = query.flag("dry_run")
    return Submission(services(), tenant_of(request), body, key, () if dry_run else JOB_EVENTS, dry_run=dry_run)


def _answer_accepted(accepted: Accepted, wait_seconds: float) -> Response:
    services().ended.wait(accepted.job_id, wait_seconds)
    job = services().ledger.get(accepted.job_id, tenant_of(request))
    headers = {"Location": f"/v1/jobs/{job.id}"}
    if accepted.replayed:
        headers["Idempotent-Replayed"] = "true"
    if wait_seconds and job.status.ended:
        if job.options.dry_run:
            return json_answer(_record(job), 200, headers)
        return _answer_with_vectors(job, headers)
    return json_answer(_record(job), 202, headers | {"Retry-After": "1"})


def _record(job: Job) -> JobRecord:
    """The job's record. A live job whose queue has no live worker waits for one, however long that takes."""
    waits = not job.status.ended and job.queue not in services().workers.queues()
    counted = job.options.dry_run and job.status.ended
    queue = services().ledger.queue_states([job.queue])[0] if counted else None
    return job_record(job, waiting_for=f"a worker of the queue {job.queue}" if waits else None, queue=queue)


def _answer_with_vectors(job: Job, headers: dict[str, str]) -> Response:
    ledger = services().ledger
    parts = read_parts(ledger, job.id, ledger.finished(job.id), 0, job.counts.total)
    return streamed(write_job(job, started(parts)), JSON, headers)


@views.get("")
@describes({200: Answer("A page of jobs.", JobList)}, query=(ListQuery,), errors=(JobNotFound,))
def list_jobs() -> Response:
    """List jobs, newest first."""
    query = Query(request.args, ListQuery.__annotations__)
    status = query.one_of("status", [status.value for status in JobStatus])
    limit = query.whole("limit", 20, minimum=1, maximum=MOST_LISTED)
    found = services().ledger.jobs(
        tenant_of(request), after=query.text("after"), limit=limit, status=JobStatus(status) if status else None
    )
    return json_answer(job_list(*found))


@views.get("/<job_id>")
@describes({200: Answer("The job's record.", JobRecord, RETRY)}, query=(WaitQuery,), errors=(JobNotFound,))
def show(job_id: JobId) -> Response:
    """See a job."""
    wait_seconds = Query(request.args, WaitQuery.__annotations__).wait_seconds()
    tenant = tenant_of(request)
    job = services().ledger.get(job_id, tenant)
    if wait_seconds and not job.status.ended:
        services().ended.wait(job_id, wait_seconds)
        job = services().ledger.get(job_id, tenant)
    return json_answer(_record(job), headers={} if job.status.ended else {"Retry-After": "1"})


@views.delete("/<job_id>")
@describes({200: Answer("It is cancelled, or deleted.", JobRecord | DeletedJob)}, errors=(JobNotFound,))
def remove(job_id: JobId) -> Response:
    """Cancel a live job, delete an ended one.

    Cancelling takes effect within one batch; what was finished before stays readable. A job may end meanwhile: who wants to
    cancel and never to delete has `POST /v1/jobs/{id}/cancel`.
    """
    Query(request.args, ())
    job = services().ledger.remove(job_id, tenant_of(request))
    return json_answer(job_record(job) if job else {"id": job_id, "object": "job", "deleted": True})


@views.post("/<job_id>/cancel")
@describes({200: Answer("The job, which has ended: now, or before.", JobRecord)}, errors=(JobNotFound,))
def cancel(job_id: JobId) -> Response:
    """Cancel a job, never delete it.

    It takes effect within one batch; what was finished before stays readable. A job that has ended is answered as it is, so
    that a request whose answer was lost can be repeated.
    """
    Query(request.args, ())
    with refusing(request):
        job, _ = services().ledger.cancel(job_id, tenant_of(request))
    return json_answer(_record(job))
