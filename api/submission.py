"""Take a new job: read the request, stage its inputs in the ledger, submit.

Only a submitted job exists; whatever goes wrong before leaves nothing behind. Once `submit` was called its outcome may be
unknown (a timeout), and from then on nothing may be taken back: the job may have been accepted.
"""

import hashlib
import logging
import re
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from api import requests
from api.bodies import Body, lines
from api.dry_run import LIFETIME_SECONDS, Duplicates
from api.schemas import (
    MISSING,
    MOST_ID_CHARACTERS,
    JobRequest,
    most_values,
    read_body,
    read_inputs,
    read_lines,
    read_options,
    shown,
)
from api.services import Services
from core.config import Settings
from core.errors import InvalidRequest, LedgerUnavailable, RequestTooLarge
from core.jobs import Lane
from core.ledger import Ledger, Limits, NewJob, Worker, require_same_body
from core.models import Model
from core.routing import QUEUES, choose_queue, may_move
from core.sharding import Input, Shard, cut

log = logging.getLogger(__name__)

GROUP_CHARACTERS = 1_048_576
GROUP_SHARDS = 32
"""How much is sent to Redis at once while a job is staged."""

CHARACTER_BYTES = 12
"""Most bytes of one character in JSON: `\\ud83d\\ude00`."""

PRINTABLE = re.compile(r"[\x20-\x7e]{1,255}")

IdempotencyKey = Annotated[
    str, Field(pattern=f"^{PRINTABLE.pattern}$", description="The same key and body again find the same job.")
]
Replayed = Annotated[Literal["true"] | None, Field(description="The request repeats an earlier one, whose job this is.")]
"""Of the header `Idempotency-Key`, and of `Idempotent-Replayed` in the answer."""


@dataclass(frozen=True)
class Accepted:
    job_id: str
    replayed: bool = False
    """The request repeats an earlier one, whose job this is."""


@dataclass(frozen=True)
class Submission:
    """A new job that is on its way in."""

    services: Services
    tenant: str
    body: Body
    idempotency_key: str | None
    events: Collection[str] = ()
    """Of these, the tenant's webhooks are told."""
    dry_run: bool = False

    def take_json(self) -> Accepted:
        """Accept the job of a JSON body.

        Raises:
            InvalidRequest: or a kind of it, for what the client did wrong; ModelNotFound for a model that is not served.
            BacklogFull: too much would wait.
            RateLimited: too many inputs in a minute.
            PlacesFull: too many large bodies at once.
            LedgerUnavailable: Redis went away; whether the job was accepted may be unknown.
        """
        settings = self.services.settings
        if repeated := self.find_repeated():
            return repeated
        raw = self.body.read()
        with self.services.room_for(raw):
            values = read_body(raw, most_values(settings))
            given = values.pop("inputs", MISSING)
            request = read_options(values, settings)
            model = self.services.models.find(request.model)
            return self._accept(request, model, read_inputs(given, settings))

    def take_ndjson(self, options: dict[str, Any]) -> Accepted:
        """Accept the job of an NDJSON body, which is staged as it comes and never held. Raises what `take_json` raises."""
        settings = self.services.settings
        request = read_options(options, settings)
        model = self.services.models.find(request.model)
        if repeated := self.find_repeated():
            return repeated
        self.require_room()
        found = lines(self.body, limit_bytes=CHARACTER_BYTES * (settings.max_input_characters + MOST_ID_CHARACTERS) + 1024)
        return self._accept(request, model, read_lines(found, settings))

    def take(self, request: JobRequest, model: Model, inputs: Iterable[Input]) -> Accepted:
        """Accept a job whose body is read. Raises what `take_json` raises."""
        return self.find_repeated() or self._accept(request, model, inputs)

    @property
    def notify(self) -> str:
        """Who is told of its end, as the ledger keeps it."""
        return self.services.webhooks.targets.wanting(self.tenant, self.events)

    def find_repeated(self) -> Accepted | None:
        """The job of an earlier request with the same key and body; the body is then read for its digest alone."""
        ledger = self.services.ledger
        found = self.idempotency_key and ledger.find_repeated(self.tenant, _digest(self.idempotency_key))
        if not found:
            return None
        job_id, digest = found
        requests.concerns(job_id)
        self.body.exhaust()
        require_same_body(digest, self.body.digest())
        return Accepted(job_id, replayed=True)

    def require_room(self) -> None:
        settings = self.services.settings
        self.services.ledger.require_room(self.tenant, max_waiting_inputs=settings.max_waiting_inputs, limits=limits_of(settings))

    def _accept(self, request: JobRequest, model: Model, inputs: Iterable[Input]) -> Accepted:
        require_known(request, self.services.workers.of(model))
        job_id = new_job_id()
        duplicates = Duplicates() if self.dry_run else None
        seen = duplicates.counting(inputs) if duplicates else inputs
        total, shards, rest = stage(self.services.ledger, job_id, seen, self.services.settings)
        return self.submit(job_id, request, model, total, shards, rest, duplicates.count() if duplicates else None)

    def submit(
        self,
        job_id: str,
        request: JobRequest,
        model: Model,
        total: int,
        shards: int,
        rest: list[Shard],
        duplicates: int | None = None,
    ) -> Accepted:
        """Accept a job of `total` inputs in so many shards, all staged but for the `rest`."""
        services, settings = self.services, self.services.settings
        served = services.workers.queues()
        live = [queue for queue in QUEUES if model.queue(queue) in served]
        chosen = choose_queue(request.queue, job_id=job_id, live_queues=live, gpu_share=settings.gpu_share)
        job = NewJob(
            id=job_id,
            tenant=self.tenant,
            queue=model.queue(chosen),
            lane=Lane(request.priority),
            model=model.name,
            options=replace(request.job_options, dry_run=self.dry_run),
            metadata=request.metadata or {},
            ttl_seconds=request.ttl_seconds or (LIFETIME_SECONDS if self.dry_run else settings.result_ttl_seconds),
            inputs=total,
            shards=shards,
            moves=may_move(request.queue, job_id=job_id, gpu_share=settings.gpu_share),
            idempotency_key=_digest(self.idempotency_key) if self.idempotency_key else "",
            body_digest=self.body.digest() if self.idempotency_key else "",
            notify=self.notify,
            duplicates=duplicates,
        )
        limits = limits_of(settings)
        told = {"queue": job.queue, "lane": request.priority, "inputs": total, "shards": shards}
        with requests.current_span().begin("submit job", "producer", **told) as span:
            traced = replace(job, traceparent=span.traceparent)
            accepted_id, wake = services.ledger.submit(
                traced, rest, max_waiting_inputs=settings.max_waiting_inputs, limits=limits
            )
            span.set(job=accepted_id)  # of two requests with one key the other may have come first
        requests.concerns(accepted_id)
        if wake:
            services.wakes.send(job.queue)
        return Accepted(accepted_id, replayed=accepted_id != job_id)


def new_job_id() -> str:
    return f"job_{uuid.uuid4().hex}"


def limits_of(settings: Settings) -> Limits:
    return Limits(**{item.name: getattr(settings, item.name) for item in fields(Limits)})


def read_idempotency_key(sent: str | None) -> str | None:
    """The header's value.

    Raises:
        InvalidRequest: empty, too long, or not printable ASCII.
    """
    if sent is None or PRINTABLE.fullmatch(sent):
        return sent
    message = f"Idempotency-Key must have 1 to 255 printable ASCII characters, got {len(sent)} characters"
    raise InvalidRequest(message, param="Idempotency-Key")


def require_known(request: JobRequest, workers: Sequence[Worker]) -> None:
    """Refuse what no live worker can do. While none is known the job is accepted, and a worker judges it.

    Raises:
        InvalidRequest: more dimensions than the model has, a prompt it does not know, or chunks that are mostly overlap.
    """
    ready = [worker for worker in workers if worker.dimensions > 0]
    if not ready:
        return
    most = max(worker.dimensions for worker in ready)
    if request.dimensions is not None and request.dimensions > most:
        raise InvalidRequest(f"dimensions must be at most {most}, the model's own, got {request.dimensions}", param="dimensions")
    half = max(worker.max_tokens for worker in ready) // 2
    if request.job_options.chunk_overlap > half:
        message = f"chunk_overlap must be at most {half} tokens, half of the model's maximum, got {request.chunk_overlap}"
        raise InvalidRequest(message, param="chunk_overlap")
    prompts = sorted({name for worker in ready for name in worker.prompts})
    if request.prompt_name is not None and request.prompt_name not in prompts:
        known = f"known are {', '.join(prompts)}" if prompts else "the model has none"
        raise InvalidRequest(f"unknown prompt_name {shown(request.prompt_name)}; {known}", param="prompt_name")


def stage(ledger: Ledger, job_id: str, inputs: Iterable[Input], settings: Settings) -> tuple[int, int, list[Shard]]:
    """Store the inputs as shards, a few at a time, but for the last few.

    Returns how many inputs and shards they are, and the shards that are left to be submitted with the job.

    Raises:
        RequestTooLarge: they take more bytes than may wait.
        InvalidRequest: there is no input; or whatever `inputs` raises. Nothing stays in the ledger then.
    """
    total = count = 0
    rest: list[Shard] = []
    try:
        for group in _groups(cut(inputs, max_inputs=settings.shard_inputs, max_characters=settings.shard_characters)):
            if rest:
                _require_less(ledger.stage(job_id, rest), settings.max_waiting_bytes)
            rest = group
            total, count = group[-1].span.end, count + len(group)
    except LedgerUnavailable:
        raise  # what was staged expires by itself; trying to remove it would only cost another timeout
    except BaseException:
        if count > len(rest):
            unstage(ledger, job_id)
        raise
    if not total:
        raise InvalidRequest("the body has no inputs, at least one is needed", param="inputs")
    return total, count, rest


def _require_less(staged_bytes: int, limit_bytes: int | None) -> None:
    if limit_bytes is not None and staged_bytes > limit_bytes:
        raise RequestTooLarge(f"the inputs take more than may wait at all: {limit_bytes} bytes (MAX_WAITING_BYTES)")


def _groups(shards: Iterable[Shard]) -> Iterator[list[Shard]]:
    group, characters = list[Shard](), 0
    for shard in shards:
        group.append(shard)
        characters += sum(len(item.text) for item in shard.inputs)
        if len(group) == GROUP_SHARDS or characters >= GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def unstage(ledger: Ledger, job_id: str) -> None:
    try:
        ledger.unstage(job_id)
    except LedgerUnavailable as error:
        log.warning("what was staged of %s stays until it expires: %s", job_id, error, extra={"job": job_id})


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
