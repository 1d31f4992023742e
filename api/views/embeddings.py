"""OpenAI's `POST /v1/embeddings`: a job of the interactive lane, its answer held until the vectors are there, then removed."""

import logging
import time
from collections.abc import Iterator
from typing import Annotated

from flask import Blueprint, Response, g, request
from pydantic import Field
from werkzeug.exceptions import ClientDisconnected, RequestTimeout, UnsupportedMediaType

from api.answers import JSON, streamed
from api.bodies import Body, has_gone, refusing
from api.embeddings import Asked, EmbeddingsBody, failure, read_embeddings, write_embeddings
from api.openapi import Answer, describes
from api.queries import Query
from api.records import Embeddings
from api.results import PIECE_FLOATS, Part, as_base64, as_numbers, started
from api.services import services, tenant_of
from api.submission import Accepted, IdempotencyKey, Replayed, Submission, read_idempotency_key
from core.blocks import ResultBlock
from core.errors import (
    IdempotencyConflict,
    InputFailed,
    InvalidRequest,
    LedgerUnavailable,
    ModelNotFound,
    NotInTime,
    PlacesFull,
    RequestTooLarge,
    ResultStoreUnavailable,
)
from core.jobs import Job, JobStatus
from core.sharding import Span

log = logging.getLogger(__name__)

views = Blueprint("embeddings", __name__)

DIGEST_HEAD = b"/v1/embeddings"


@views.before_request
def note_begin() -> None:
    g.begun = time.perf_counter()


@views.after_request
def tell_milliseconds(answer: Response) -> Response:
    if "begun" in g:
        answer.headers["openai-processing-ms"] = str(round(1000 * (time.perf_counter() - g.begun)))
    return answer


@views.post("/v1/embeddings")
@describes(
    {
        200: Answer(
            "The vectors of all texts.",
            Embeddings,
            {
                "x-truncated-inputs": Annotated[int, Field(description="How many texts were cut.")],
                "openai-processing-ms": int,
                "Idempotent-Replayed": Replayed,
            },
        )
    },
    headers={"Idempotency-Key": IdempotencyKey},
    bodies={JSON: EmbeddingsBody},
    errors=(
        ModelNotFound,
        RequestTimeout,
        IdempotencyConflict,
        RequestTooLarge,
        UnsupportedMediaType,
        PlacesFull,
        InputFailed,
        NotInTime,
        ResultStoreUnavailable,
    ),
)
def create() -> Response:
    """Embed texts at once, as OpenAI does.

    A job of the interactive lane, which is waited for and then removed. What is not OpenAI's: `prompt_name`, `truncate`, `queue`.
    """
    found = services()
    with refusing(request):
        _require_json()
        Query(request.args, ())
        key = read_idempotency_key(request.headers.get("Idempotency-Key"))
        body = Body(request, limit_bytes=found.settings.max_body_bytes, setting="MAX_BODY_BYTES", digest_head=DIGEST_HEAD)
        raw = body.read()
        with found.room_for(raw):
            asked = read_embeddings(raw, found.settings, found.models, repeatable=key is not None)
    with found.ended.require_place():
        accepted = Submission(found, tenant_of(request), body, key).take(asked.job, asked.model, asked.inputs)
        try:
            answer = _answer(asked, accepted, repeatable=key is not None)
        except BaseException as error:
            if isinstance(error, InputFailed) and error.retryable:  # whoever tries again with the key must not find this failure
                found.answered.remove(accepted.job_id, tenant_of(request))
            elif key is None:  # who sends one may come back for the vectors
                _give_up(accepted.job_id, at_once=not isinstance(error, LedgerUnavailable))
            raise
    if key is None:
        tenant = tenant_of(request)
        answer.call_on_close(lambda: found.answered.remove(accepted.job_id, tenant))
    return answer


def _require_json() -> None:
    if request.mimetype != JSON or request.content_encoding not in (None, "", "identity"):
        sent = request.mimetype[:64] or "none"
        coding = f" with Content-Encoding {request.content_encoding[:32]!r}" if request.content_encoding else ""
        raise UnsupportedMediaType(f"Content-Type must be {JSON}, without Content-Encoding, got {sent!r}{coding}")


def _answer(asked: Asked, accepted: Accepted, *, repeatable: bool) -> Response:
    seconds = services().settings.embeddings_wait_seconds
    services().ended.wait_in_place(accepted.job_id, seconds, given_up=lambda: has_gone(request))
    job, results = services().ledger.outcome(accepted.job_id, tenant_of(request))
    _require_vectors(job, asked, repeatable=repeatable)
    parts = started(_parts(results))
    headers = {"x-truncated-inputs": str(job.truncated)}
    if accepted.replayed:
        headers["Idempotent-Replayed"] = "true"
    pieces = write_embeddings(job, parts, as_base64 if asked.encoding_format == "base64" else as_numbers)
    if job.counts.total * (job.dimensions or 0) <= PIECE_FLOATS:
        return Response(b"".join(pieces), headers=headers, mimetype=JSON)
    return streamed(pieces, JSON, headers)


def _parts(results: Iterator[tuple[Span, ResultBlock]]) -> Iterator[Part]:
    return (Part(span.first, block, 0, span.count) for span, block in results)


def _require_vectors(job: Job, asked: Asked, *, repeatable: bool) -> None:
    """Returns when every input has its vector.

    Raises:
        ClientDisconnected: nobody waits for the answer any more.
        NotInTime: it has not ended.
        InvalidRequest, InputFailed: an input failed, or the job was cancelled.
    """
    if not job.status.ended:
        if has_gone(request):
            raise ClientDisconnected("the client has gone")
        raise _not_in_time(job, repeatable=repeatable)
    if job.status is JobStatus.CANCELLED:
        raise InvalidRequest("the job of this request was cancelled", code="cancelled")
    if job.counts.failed:
        raise failure(job, single=asked.single)


def _not_in_time(job: Job, *, repeatable: bool) -> NotInTime:
    found = services()
    seconds = found.settings.embeddings_wait_seconds
    reason = (
        "this API process is about to stop"
        if found.ended.stopping()
        else f"the vectors did not come within {seconds:g} s (EMBEDDINGS_WAIT_SECONDS)"
    )
    if job.queue not in found.workers.queues():
        reason += f", and no worker of the queue {job.queue} lives"
    goes_on = (
        "the work goes on: the same request with the same Idempotency-Key finds it"
        if repeatable
        else "the work was cancelled; with an Idempotency-Key it would go on"
    )
    return NotInTime(f"{reason}; {goes_on}")


def _give_up(job_id: str, *, at_once: bool) -> None:
    """Nobody will read what the job makes. `at_once`: before the client hears of it, and before this process may end."""
    if not at_once:
        services().answered.remove(job_id, tenant_of(request))
        return
    try:
        services().ledger.drop([(job_id, tenant_of(request))])
    except LedgerUnavailable as error:
        log.warning("the work for a request without an answer could not be cancelled: %s", error)
