"""OpenAI's batches: jobs whose inputs come from a file, and whose result is one."""

from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Any

from flask import Blueprint, Response, request
from pydantic import Field
from typing_extensions import TypedDict
from werkzeug.exceptions import RequestTimeout, UnsupportedMediaType

from api.answers import JSON, json_answer
from api.batch_input import BatchRejected, BatchRequest, LineReader, read_batch
from api.batch_output import settled
from api.bodies import Body, refusing
from api.openapi import Answer, describes
from api.queries import Query
from api.records import BatchList, BatchRecord
from api.schemas import read_body
from api.services import services, tenant_of
from api.submission import IdempotencyKey, Replayed, Submission, new_job_id, read_idempotency_key, stage, unstage
from core.errors import (
    BacklogFull,
    BatchEnded,
    BatchNotFound,
    FileNotFound,
    IdempotencyConflict,
    JobNotFound,
    LedgerUnavailable,
    RequestTooLarge,
)
from core.ledger import Batch, NewBatch
from core.ledger.batches import batch_not_found, batch_of
from core.webhooks import BATCH_EVENTS

views = Blueprint("batches", __name__, url_prefix="/v1/batches")

MOST_LISTED = 100

BatchId = Annotated[str, Field(description="As the batch's record tells it.")]


class ListQuery(TypedDict, total=False):
    limit: Annotated[int, Field(ge=1, le=MOST_LISTED)]
    after: Annotated[str, Field(description="The `last_id` of the page before.")]


@views.post("")
@describes(
    {200: Answer("The batch runs, or has failed as its file is wrong.", BatchRecord, {"Idempotent-Replayed": Replayed})},
    headers={"Idempotency-Key": IdempotencyKey},
    bodies={JSON: BatchRequest},
    errors=(FileNotFound, RequestTimeout, IdempotencyConflict, RequestTooLarge, UnsupportedMediaType, BacklogFull),
)
def create() -> Response:
    """Create a batch of a file's lines.

    The file is read through, once: the answer comes when all of the batch is in the ledger, or it is known why it cannot be."""
    Query(request.args, ())
    with refusing(request):
        if request.mimetype != JSON:
            raise UnsupportedMediaType(f"Content-Type must be {JSON}, got {request.mimetype[:64] or 'none'}")
        found = services()
        body = Body(request, limit_bytes=found.settings.max_body_bytes, setting="MAX_BODY_BYTES", digest_head=b"batch")
        key = read_idempotency_key(request.headers.get("Idempotency-Key"))
        submission = Submission(found, tenant_of(request), body, key, BATCH_EVENTS)
        repeated = submission.find_repeated()
        if repeated is None:
            asked = read_batch(read_body(body.read()), found.settings)
            submission.require_room()
            batch_id, replayed = _submit(submission, asked)
        else:
            batch_id, replayed = batch_of(repeated.job_id), True
    return json_answer(batch_record(_find(batch_id)), headers={"Idempotent-Replayed": "true"} if replayed else None)


def _submit(submission: Submission, asked: BatchRequest) -> tuple[str, bool]:
    """The id of the new batch, or of the one that this request repeats, and whether it is that."""
    found, tenant = services(), submission.tenant
    file = found.files.get(asked.input_file_id, tenant)
    batch = NewBatch(tenant, file.id, asked.endpoint, asked.completion_window, asked.window_seconds, metadata=asked.metadata)
    job_id = new_job_id()
    reader = LineReader(
        found.settings,
        found.models,
        found.workers.of,
        asked,
        lambda number, block: found.batches.stage_lines(job_id, number, block),
    )
    try:
        inputs = reader.read(found.files.read(file))
        total, shards, rest = stage(found.ledger, job_id, inputs, found.settings)
        found.batches.stage(job_id, batch, lines=reader.lines, blocks=reader.blocks)
    except LedgerUnavailable:
        raise  # what was staged expires by itself
    except BatchRejected as rejected:
        unstage(found.ledger, job_id)
        errors = [asdict(error) for error in rejected.errors]
        ttl_seconds = found.settings.result_ttl_seconds
        found.batches.reject(job_id, batch, errors, ttl_seconds=ttl_seconds, notify=submission.notify)
        return batch_of(job_id), False
    except BaseException:
        unstage(found.ledger, job_id)
        raise
    assert reader.request is not None  # `read` has seen a line
    assert reader.model is not None
    accepted = submission.submit(job_id, reader.request, reader.model, total, shards, rest)
    return batch_of(accepted.job_id), accepted.replayed


@views.get("")
@describes({200: Answer("A page.", BatchList)}, query=(ListQuery,), errors=(BatchNotFound,))
def list_batches() -> Response:
    """List batches, newest first."""
    query = Query(request.args, ListQuery.__annotations__)
    limit = query.whole("limit", 20, minimum=1, maximum=MOST_LISTED)
    found, has_more = services().batches.page(tenant_of(request), after=query.text("after"), limit=limit)
    data = list[dict[str, Any]]()
    for batch in found:
        with suppress(BatchNotFound, JobNotFound):  # deleted just now
            data.append(batch_record(settled(services().ledger, services().batches, batch)))
    return json_answer(
        {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": has_more,
        }
    )


@views.get("/<batch_id>")
@describes({200: Answer("The batch.", BatchRecord)}, errors=(BatchNotFound,))
def show(batch_id: BatchId) -> Response:
    """See a batch."""
    Query(request.args, ())
    return json_answer(batch_record(_find(batch_id)))


@views.post("/<batch_id>/cancel")
@describes({200: Answer("The batch, cancelled.", BatchRecord)}, errors=(BatchNotFound, BatchEnded))
def cancel(batch_id: BatchId) -> Response:
    """Cancel a batch.

    What is embedded by then is in the output file; it stays so."""
    Query(request.args, ())
    with refusing(request):
        services().batches.cancel(batch_id, tenant_of(request))
    return json_answer(batch_record(_find(batch_id)))


def _find(batch_id: str) -> Batch:
    found = services()
    try:
        return settled(found.ledger, found.batches, found.batches.get(batch_id, tenant_of(request)))
    except JobNotFound:  # it was deleted while its lines were counted
        raise batch_not_found(batch_id) from None


def batch_record(batch: Batch) -> dict[str, Any]:
    """A batch as OpenAI's clients read it. Times are whole Unix seconds."""
    job, status = batch.job, batch.status
    completed, failed = batch.counts
    created = int(batch.created_at)
    ended = int(job.ended_at) if job and job.ended_at else None
    file_hex = batch.id.removeprefix("batch_")
    tokens = job.tokens if job else 0

    def ended_as(*statuses: str) -> int | None:
        return ended if status in statuses else None

    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": job.model if job else None,
        "errors": {"object": "list", "data": list(batch.errors)} if batch.errors else None,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": status,
        "output_file_id": f"file-output-{file_hex}" if batch.has("output") else None,
        "error_file_id": f"file-error-{file_hex}" if batch.has("error") else None,
        "created_at": created,
        "in_progress_at": created if job else None,
        "expires_at": int(batch.deadline) if batch.deadline else None,
        "finalizing_at": ended_as("completed"),
        "completed_at": ended_as("completed"),
        "failed_at": None if job else created,
        "expired_at": ended_as("expired"),
        "cancelling_at": ended_as("cancelled"),
        "cancelled_at": ended_as("cancelled"),
        "request_counts": {"total": batch.lines, "completed": completed, "failed": failed},
        "usage": {
            "input_tokens": tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tokens,
        },
        "metadata": batch.metadata,
    }
