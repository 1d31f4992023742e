"""The door to Redis: every read and write of the service, as typed functions. `core.ledger` maps the keys."""

import functools
import json
import math
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import redis
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.commands.core import Script
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry
from redis.sentinel import Sentinel

from core.blocks import Reference, ResultBlock, pack_inputs, pack_result, unpack_inputs, unpack_stored
from core.errors import (
    BacklogFull,
    IdempotencyConflict,
    JobNotFound,
    LedgerUnavailable,
    NewerLayout,
    RateLimited,
    RequestTooLarge,
    ResultLost,
    UnreadableBlock,
)
from core.jobs import InputError, Job, JobOptions, JobStatus, Lane
from core.ledger.bell import Bell
from core.routing import FALLBACK, HOME, beside
from core.sentinel import SentinelUrl
from core.sharding import Input, Shard, Span

LAYOUT = 2
"""Of the keys, as in common.lua."""

STAGED_SECONDS = 600
"""How long shards of a job that is still being sent outlive their sender."""

SHOWN_ERRORS = 100
"""Failed inputs that the job's record keeps; the result tells them all."""

UNKNOWN_RETRY_SECONDS = 60
LONGEST_RETRY_SECONDS = 120
"""When to come back: while nobody works, and at the latest."""

BUCKET_SECONDS = 10
BUCKETS = 60
"""Of the throughput's history, as in commit.lua."""

WAITING = {
    "MAX_WAITING_INPUTS": ("{} inputs wait", ", {} were sent"),
    "MAX_WAITING_BYTES": ("{} bytes of inputs wait", ", {} inputs were sent"),
    "MAX_TENANT_INPUTS": ("{} inputs of yours wait or are being embedded", ", {} were sent"),
    "MAX_TENANT_JOBS": ("{} of your jobs are not over", ""),
}
"""What is counted under each limit, and what comes on top."""

REPORT = ("report", "seen_at", "lifetime")
"""Fields of `worker:<name>`."""

SILENT = 2 / 3
"""Share of the lifetime of a worker's report, of three heartbeats, after which it counts as silent."""

Facts = tuple[str, str, str, str, float | None]
"""Of the worker that commits: device, engine, dtype, revision, parity."""

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class NewJob:
    """A job whose shards are staged."""

    id: str
    tenant: str
    queue: str
    lane: Lane
    model: str
    options: JobOptions
    metadata: dict[str, Any]
    ttl_seconds: int
    inputs: int
    shards: int
    moves: bool = False
    """It may go to either queue of its model, so `Ledger.move` takes it where a worker lives."""
    idempotency_key: str = ""
    """Digest of the client's key, or empty."""
    body_digest: str = ""
    notify: str = ""
    """Who is told of its end, by `core.webhooks.Targets.wanting`."""
    duplicates: int | None = None
    """Of a dry run: inputs whose text stood in the job before, if that is known."""
    traceparent: str = ""
    """Of the span in which it is submitted, if that is recorded."""


@dataclass(frozen=True)
class Limits:
    """What may wait beside the number of inputs; None is no limit. The settings of these names say more."""

    max_waiting_bytes: int | None = None
    max_tenant_jobs: int | None = None
    max_tenant_inputs: int | None = None
    max_tenant_inputs_per_minute: int | None = None

    def by_setting(self, max_waiting_inputs: int) -> dict[str, int]:
        """The limits there are, under the names of their environment variables."""
        named = {"max_waiting_inputs": max_waiting_inputs} | asdict(self)
        return {name.upper(): limit for name, limit in named.items() if limit is not None}


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Allowance:
    """What a tenant may still use of so many a minute."""

    limit: int
    remaining: int
    reset_seconds: float
    """Until it is whole again."""
    wait_seconds: float = 0.0
    """Until what was asked for is granted; 0 when it was."""


@dataclass(frozen=True)
class ClaimedShard:
    """A shard under this worker's lease. `attempt` is the fence: no other claim of the shard ever has it."""

    job_id: str
    span: Span
    attempt: int
    model: str
    """That the job asks for."""
    tenant: str
    options: JobOptions
    inputs: tuple[Input, ...]
    deaths: int = 0
    """Workers that ended while they held it alone."""
    hangs: int = 0
    """How many of these because their engine did not come back."""
    waited_seconds: float | None = None
    """From the job's creation to this claim, by Redis's clock; None unless the job began with this shard."""
    unreadable: str = ""
    """Why there are no inputs, or nothing: they are there."""
    traceparent: str = ""
    """Of the job's submission, where that is traced."""


@dataclass(frozen=True)
class Claim:
    shards: tuple[ClaimedShard, ...]
    lane: Lane | None
    """Of all the shards; None when there are none."""
    alone: bool
    """The one shard was in flight when a worker died."""
    wake: bool
    """Another worker is idle while work waits: send `embed_pending`."""


@dataclass(frozen=True)
class Committed:
    """A finished shard on its way to the ledger."""

    shard: ClaimedShard
    result: ResultBlock
    cached: int = 0
    """Inputs whose vectors were not computed for it."""


@dataclass(frozen=True)
class Worker:
    """What a worker reports about itself."""

    name: str
    queues: tuple[str, ...]
    state: str
    """`idle` or `busy`."""
    model: str
    revision: str
    engine: str
    device: str
    dtype: str
    dimensions: int
    max_tokens: int
    prompts: tuple[str, ...]
    facts: dict[str, Any]
    """Further figures for people: memory, what was done so far, the last batch."""
    parity: float | None = None
    """Worst cosine of its engine against float32 torch; None when it was not measured."""
    seen_at: float = 0.0
    """When it reported last, by the server's clock, as `silent`."""
    silent: bool = False
    """It should have reported again by now."""
    device_name: str = ""
    """What its maker calls the device."""
    histograms: dict[str, Any] = field(default_factory=dict)
    """How its stages and batches were since it began, see `worker.histograms`."""


@dataclass(frozen=True)
class QueueState:
    """One queue as it stands. Inputs, not shards."""

    name: str
    waiting: dict[str, int]
    """By lane, as all that follows from here on to `suspects`."""
    running_by_lane: dict[str, int]
    oldest_by_lane: dict[str, float]
    """Age of the oldest job with unclaimed shards, of those that are next in line; a lane without any has none."""
    suspects: int
    workers: tuple[Worker, ...]

    @property
    def running(self) -> int:
        return sum(self.running_by_lane.values())

    @property
    def oldest_seconds(self) -> float | None:
        return max(self.oldest_by_lane.values(), default=None)

    @property
    def backlog(self) -> int:
        """What waits and what runs."""
        return sum(self.waiting.values()) + self.running

    @property
    def stalled(self) -> bool:
        """There is work and no worker lives: what runs was in flight when the last one died, and waits for the next."""
        return self.backlog > 0 and not self.workers


@dataclass(frozen=True)
class Survey:
    """The ledger as it stands, read in a few round trips however many jobs there are."""

    queues: tuple[QueueState, ...]
    workers: tuple[Worker, ...]
    """All that live."""
    waiting_bytes: int
    """Of the inputs that Redis holds until their vectors are stored."""
    jobs: dict[str, int]
    """Those that have not ended, by status."""
    kept_jobs: int
    """Those that have, and are kept; batches whose file could not be embedded count as well."""
    counters: dict[str, int]
    throughput: tuple[int, ...]
    """Inputs embedded in each of the last `BUCKETS` times `BUCKET_SECONDS`, oldest first; the last one is still running."""


def connect(url: str, *, timeout_seconds: float, retries: int) -> redis.Redis:
    """A client that gives up soon: redis-py's own default of 10 retries takes 4 s to report a dead server.

    Only lost connections are retried. That is safe, as every script may run twice.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": min(timeout_seconds, 2),
        "retry": Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.5), retries, supported_errors=(RedisConnectionError,)),
        "health_check_interval": 30,
        "max_connections": 4096,  # redis-py's own 100 is less than the threads an API may have
    }
    url_of_sentinels = SentinelUrl.parse(url)
    if url_of_sentinels is None:
        return redis.Redis.from_url(url, **options)
    return _master_of(url_of_sentinels, options)


def _master_of(url: SentinelUrl, options: dict[str, Any]) -> redis.Redis:
    """A client that asks the sentinels for the master whenever it connects."""
    asking = {name: options[name] for name in ("socket_timeout", "socket_connect_timeout")} | {"retry": Retry(NoBackoff(), 0)}
    sentinels = Sentinel(url.sentinels, sentinel_kwargs=asking)  # type: ignore[no-untyped-call]
    login = {"username": url.username, "password": url.password, "db": url.database}
    return cast(redis.Redis, sentinels.master_for(url.master, **login, **options))  # type: ignore[no-untyped-call]


def _translated(function: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except ResponseError as error:
            if newer := re.search(r"NEWERLAYOUT (\d+)", str(error)):
                raise _newer_layout(newer[1]) from None
            raise LedgerUnavailable(f"Redis: {type(error).__name__}: {error}") from error
        except RedisError as error:
            raise LedgerUnavailable(f"Redis: {type(error).__name__}: {error}") from error

    return call


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _record(found: Mapping[Any, Any]) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in found.items()}


class Ledger:
    """All jobs of the service.

    Raises:
        LedgerUnavailable: from every method, when Redis is out of reach, full or refuses.
    """

    def __init__(self, client: redis.Redis, prefix: str) -> None:
        self._redis = client
        self._prefix = prefix
        self._bells: dict[str, Bell] = {}
        folder = Path(__file__).parent
        common = (folder / "common.lua").read_text()
        self._scripts = {
            path.stem: client.register_script(common + path.read_text()) for path in folder.glob("*.lua") if path.stem != "common"
        }

    def _key(self, *parts: str) -> str:
        return self._prefix + ":".join(parts)

    def _run(self, script: str, *args: Any) -> Any:
        found: Script = self._scripts[script]
        return found(keys=[self._prefix], args=args)

    # What the API calls -------------------------------------------------------------------------------------------

    @_translated
    def ping(self) -> None:
        """Returns when Redis answers and holds no newer layout."""
        _require_known(self._redis.get(self._key("version")))

    @_translated
    def stage(self, job_id: str, shards: Iterable[Shard]) -> int:
        """Store shards of a job that is not submitted yet. They vanish by themselves if it never is.

        Returns how many bytes all its shards take so far.
        """
        return int(self._run("stage", job_id, _milliseconds(STAGED_SECONDS), *_blocks(shards)))

    @_translated
    def unstage(self, job_id: str) -> None:
        """Drop what `stage` stored."""
        self._redis.unlink(*[self._key(kind, job_id) for kind in ("inputs", "pending", "staged", "batch", "lines")])

    @_translated
    def find_repeated(self, tenant: str, idempotency_key: str) -> tuple[str, str] | None:
        """The job that was submitted under this key and the digest of its body, if any."""
        found = self._redis.get(self._key("idempotency", tenant, idempotency_key))
        if found is None:
            return None
        job_id, digest = _text(found).split()
        return job_id, digest

    @_translated
    def submit(
        self, job: NewJob, rest: Iterable[Shard] = (), *, max_waiting_inputs: int, limits: Limits = NO_LIMITS
    ) -> tuple[str, bool]:
        """Accept a job whose shards are staged, but for the `rest`, which come along: a small job takes this one call.

        Returns the id of the job that now stands for the request, and whether to send a message. The id is another one when the
        idempotency key was used before for the same body.

        Raises:
            BacklogFull: too much would wait; nothing of the job is kept.
            RequestTooLarge: it would even if nothing else did.
            RateLimited: the tenant has submitted too many inputs in a minute.
            IdempotencyConflict: the key was used for another body.
        """
        record = {
            "model": job.model,
            "options": job.options.to_json(),
            "metadata": json.dumps(job.metadata),
            "ttl_seconds": job.ttl_seconds,
        } | ({} if job.duplicates is None else {"duplicates": job.duplicates})
        if job.traceparent:
            record["traceparent"] = job.traceparent
        fields = [part for pair in record.items() for part in pair]
        home, fallback = (beside(job.queue, HOME), beside(job.queue, FALLBACK)) if job.moves else ("", "")
        by_setting = limits.by_setting(max_waiting_inputs)
        head = (job.id, job.tenant, job.queue, job.lane.value, job.inputs, job.shards, json.dumps(by_setting))
        outcome, *found = self._run(
            "submit",
            *head,
            job.idempotency_key,
            job.body_digest,
            home,
            fallback,
            job.notify,
            len(fields),
            *fields,
            *_blocks(rest),
        )
        match _text(outcome):
            case "accepted":
                return job.id, bool(found[0])
            case "exists":
                self.unstage(job.id)
                job_id, digest = _text(found[0]), _text(found[1])
                require_same_body(digest, job.body_digest)
                return job_id, False
            case "full":
                self.unstage(job.id)
                raise self._over_limit(found, by_setting, job.inputs)
            case "limited":
                self.unstage(job.id)
                setting = "MAX_TENANT_INPUTS_PER_MINUTE"
                raise rate_limited(
                    f"{by_setting[setting]} inputs a minute ({setting}), {job.inputs} were sent", int(found[0]) / 1000
                )
            case _:
                raise LedgerUnavailable(f"Redis holds {int(found[0])} of the job's {job.shards} shards; send the job again")

    @_translated
    def require_room(self, tenant: str, *, max_waiting_inputs: int, limits: Limits = NO_LIMITS) -> None:
        """Returns when a job of one input would be taken.

        Raises:
            BacklogFull: too much waits.
        """
        by_setting = limits.by_setting(max_waiting_inputs)
        if found := self._run("room", tenant, json.dumps(by_setting)):
            raise self._over_limit(found[1:], by_setting, 0)

    def _over_limit(self, found: Sequence[Any], by_setting: Mapping[str, int], sent: int) -> BacklogFull | RequestTooLarge:
        """What is wrong, and a time after which trying again makes sense. `sent` is 0 when it is not known yet."""
        setting, held, to_end, never = _text(found[0]), int(found[1]), int(found[2]), bool(found[3])
        limit = by_setting[setting]
        if never:
            return RequestTooLarge(f"a job of {sent} inputs is more than may wait at all: the limit is {limit} ({setting})")
        rate = sum(worker.facts.get("inputs_per_second", 0) for worker in self.workers())
        retry_after = min(LONGEST_RETRY_SECONDS, max(1, round(to_end / rate))) if rate else UNKNOWN_RETRY_SECONDS
        there, more = WAITING[setting]
        message = (
            f"the backlog is full: {there.format(held)}{more.format(sent) if sent else ''}, the limit is {limit} ({setting})"
        )
        return BacklogFull(message, retry_after_seconds=retry_after)

    @_translated
    def spend(self, kind: str, tenant: str, per_minute: int, cost: int) -> Allowance:
        """Take from what a tenant may use in a minute, if that much is left. A cost of 0 only looks."""
        _, remaining, reset, wait = self._run("spend", kind, tenant, per_minute, cost)
        return Allowance(per_minute, int(remaining), int(reset) / 1000, int(wait) / 1000)

    @_translated
    def waiting_inputs(self) -> int:
        """Inputs that wait in all queues."""
        return sum(int(n) for n in self._redis.hvals(self._key("waiting")))

    @_translated
    def get(self, job_id: str, tenant: str) -> Job:
        """The job's record.

        Raises:
            JobNotFound: no such job, another tenant's, or expired.
        """
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.get(self._key("version"))
            pipe.hgetall(self._key("job", job_id))
            pipe.lrange(self._key("errors", job_id), 0, SHOWN_ERRORS - 1)
            layout, found, errors = pipe.execute()
        _require_known(layout)
        return _job(job_id, tenant, found, errors)

    @_translated
    def outcome(self, job_id: str, tenant: str) -> tuple[Job, Iterator[tuple[Span, ResultBlock]]]:
        """The job's record and the results of its finished shards, in order, as they are at one moment: one call of Redis.

        For small jobs: all that lies in Redis is read at once. What lies in a result store is read as it is asked for.

        Raises:
            JobNotFound: no such job, another tenant's, or expired.
        """
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.get(self._key("version"))
            pipe.hgetall(self._key("job", job_id))
            pipe.lrange(self._key("errors", job_id), 0, SHOWN_ERRORS - 1)
            pipe.hgetall(self._key("vectors", job_id))
            layout, found, errors, blocks = pipe.execute()
        _require_known(layout)
        spans = {Span.parse(_text(name)): block for name, block in blocks.items()}
        return _job(job_id, tenant, found, errors), ((span, self._unpacked(job_id, spans[span])) for span in sorted(spans))

    @_translated
    def status(self, job_id: str) -> JobStatus | None:
        """The job's status, or None when it is unknown."""
        found = self._redis.hget(self._key("job", job_id), "status")
        return None if found is None else JobStatus(_text(found))

    @_translated
    def jobs(self, tenant: str, *, after: str = "", limit: int = 20, status: JobStatus | None = None) -> tuple[list[Job], bool]:
        """Jobs newest first, after job `after`, and whether there are more. Their errors are left out.

        Raises:
            JobNotFound: `after` is no job of the tenant.
        """
        ids: list[str] = []
        position = after
        while len(ids) <= limit:
            found = self._run("jobs", tenant, position, limit + 1 - len(ids), status.value if status else "")
            if found is None:
                raise job_not_found(position, param="after")
            position, *more = map(_text, found)
            ids += more
            if not position:
                break
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids[:limit]:
                pipe.hgetall(self._key("job", job_id))
            records = pipe.execute()
        jobs = [Job.from_record(job_id, _record(record)) for job_id, record in zip(ids, records, strict=False) if record]
        return jobs, len(ids) > limit

    @_translated
    def remove(self, job_id: str, tenant: str) -> Job | None:
        """Cancel a live job or delete an ended one. Returns the job that was cancelled, None when it was deleted.

        Raises:
            JobNotFound: no such job, or another tenant's.
        """
        outcome, *job = self._run("remove", job_id, tenant, uuid.uuid4().hex, SHOWN_ERRORS, 0)
        if _text(outcome) == "unknown":
            raise job_not_found(job_id)
        return _returned_job(job_id, tenant, *job) if job else None

    @_translated
    def cancel(self, job_id: str, tenant: str) -> tuple[Job, bool]:
        """Cancel a job. Returns it as it is then, and False when it had ended before, which changes nothing.

        Raises:
            JobNotFound: no such job, or another tenant's.
        """
        outcome, *job = self._run("remove", job_id, tenant, uuid.uuid4().hex, SHOWN_ERRORS, 1)
        if _text(outcome) == "unknown":
            raise job_not_found(job_id)
        return _returned_job(job_id, tenant, *job), _text(outcome) == "cancelled"

    @_translated
    def drop(self, jobs: Iterable[tuple[str, str]]) -> None:
        """Remove jobs (id and tenant) and every trace of them. One that has not ended is cancelled; one that is gone stays so."""
        self._run("drop", *[part for job in jobs for part in job])

    @_translated
    def finished(self, job_id: str) -> list[Span]:
        """The shards whose results can be read, in order."""
        return sorted(Span.parse(_text(name)) for name in self._redis.hkeys(self._key("vectors", job_id)))

    @_translated
    def result(self, job_id: str, span: Span) -> ResultBlock:
        """The result of a finished shard.

        Raises:
            JobNotFound: the job was deleted or has expired meanwhile.
        """
        block: Any = self._redis.hget(self._key("vectors", job_id), str(span))
        if block is None:
            raise job_not_found(job_id)
        return self._unpacked(job_id, block)

    def _unpacked(self, job_id: str, block: bytes) -> ResultBlock:
        found = unpack_stored(block)
        return self._fetch(job_id, found) if isinstance(found, Reference) else found

    def _fetch(self, job_id: str, reference: Reference) -> ResultBlock:
        raise ResultLost(f"the result of job {job_id} lies in a result store, but RESULT_STORE is redis here")

    @_translated
    def ended_jobs(self) -> Iterator[str | None]:
        """Ids of jobs as they end from now on, for ever; None whenever a second passes without one."""
        channel = self._redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        channel.subscribe(self._key("ended"))
        channel.get_message(timeout=1.0)  # Redis confirms: who asks for a job's status after this misses no end
        return self._listen(channel)

    def _listen(self, channel: Any) -> Iterator[str | None]:
        try:
            while True:
                message = channel.get_message(timeout=1.0)
                yield None if message is None else _text(message["data"])
        except RedisError as error:
            raise LedgerUnavailable(f"Redis: {type(error).__name__}: {error}") from error
        finally:
            channel.close()

    # What both call -----------------------------------------------------------------------------------------------

    @_translated
    def wants_wake(self, queue: str) -> bool:
        """Whether to send `embed_pending(queue)`: work waits, a worker is free and no message is on its way."""
        return bool(self._run("wake", queue))

    @_translated
    def workers(self) -> list[Worker]:
        """The live workers, by name."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.get(self._key("version"))
            pipe.time()
            pipe.zrange(self._key("workers"), 0, -1)
            layout, clock, found = pipe.execute()
            _require_known(layout)
            names = sorted(_text(name) for name in found)
            for name in names:
                pipe.hmget(self._key("worker", name), *REPORT)
            reports = pipe.execute()
        return _workers(reports, _seconds(clock))

    @_translated
    def survey(self, queues: Iterable[str]) -> Survey:
        """The ledger as it stands, in three round trips."""
        names, lanes = list(queues), [lane.value for lane in Lane]
        states = [status.value for status in JobStatus if not status.ended]
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.get(self._key("version"))
            pipe.time()
            pipe.zrange(self._key("workers"), 0, -1)
            pipe.hgetall(self._key("waiting"))
            pipe.hmget(self._key("live"), ["bytes", *states, *(f"{Lane.INTERACTIVE.value}:{name}" for name in names)])
            pipe.zcard(self._key("expiring"))
            pipe.hgetall(self._key("counters"))
            for name in names:
                pipe.zrange(self._key("leases", name), 0, -1)
                pipe.llen(self._key("suspects", name))
                pipe.lindex(self._key("suspects", name), 0)
                for lane in lanes:
                    pipe.lrange(self._key("tenants", name, lane), 0, -1)
            layout, clock, found, waiting, (held, *live), kept, counters, *of_queues = pipe.execute()
            _require_known(layout)
            now = _seconds(clock)
            workers = sorted(_text(worker) for worker in found)
            each = 3 + len(lanes)
            parts = [of_queues[n : n + each] for n in range(0, len(of_queues), each)]
            lines = [
                (name, lane, _text(tenant))
                for name, part in zip(names, parts, strict=True)
                for lane, tenants in zip(lanes, part[3:], strict=True)
                for tenant in tenants
            ]
            bucket = int(now) // BUCKET_SECONDS
            pipe.mget([self._key("throughput", str(n)) for n in range(bucket - BUCKETS + 1, bucket + 1)])
            for worker in workers:
                pipe.hmget(self._key("worker", worker), *REPORT)
            for line in lines:
                pipe.lindex(self._key("line", *line), 0)
            throughput, *rest = pipe.execute()
            reports, heads = rest[: len(workers)], rest[len(workers) :]
            suspects = [(name, suspect.split(b"/")[0]) for name, (_, _, suspect, *_) in zip(names, parts, strict=True) if suspect]
            first = [(name, job_id) for (name, _, _), job_id in zip(lines, heads, strict=True) if job_id] + suspects
            for _, job_id in first:
                pipe.hmget(self._key("job", _text(job_id)), "lane", "created_at")
            jobs = pipe.execute()
        alive = _workers(reports, now)
        oldest: dict[tuple[str, str], float] = {}
        for (name, _), (lane, created) in zip(first, jobs, strict=True):
            if created:
                at = (name, _text(lane))
                oldest[at] = max(0.0, now - int(created) / 1000, oldest.get(at, 0.0))
        waits, interactive = _record(waiting), live[len(states) :]
        return Survey(
            queues=tuple(
                QueueState(
                    name=name,
                    waiting={lane: int(waits.get(f"{name}:{lane}", 0)) for lane in lanes},
                    running_by_lane=_by_lane(leases, int(urgent or 0)),
                    oldest_by_lane={lane: oldest[name, lane] for lane in lanes if (name, lane) in oldest},
                    suspects=suspects,
                    workers=tuple(worker for worker in alive if name in worker.queues),
                )
                for name, (leases, suspects, *_), urgent in zip(names, parts, interactive, strict=True)
            ),
            workers=tuple(alive),
            waiting_bytes=max(0, int(held or 0)),
            jobs={state: max(0, int(n or 0)) for state, n in zip(states, live, strict=False)},
            kept_jobs=kept,
            counters={name: int(value) for name, value in _record(counters).items()},
            throughput=tuple(int(inputs or 0) for inputs in throughput),
        )

    @_translated
    def memory(self) -> tuple[int | None, int | None]:
        """Bytes that Redis uses, and that it may use. None is what it does not tell: of one that may not be asked, both; of one
        that may use all there is, the second."""
        try:
            found = self._redis.info("memory")
        except ResponseError:
            return None, None
        return int(found["used_memory"]), int(found["maxmemory"]) or None

    def queue_states(self, names: Iterable[str]) -> tuple[QueueState, ...]:
        """Each queue as it stands."""
        return self.survey(names).queues

    # What a worker calls ------------------------------------------------------------------------------------------

    @_translated
    def move(self, worker: str, queue: str = FALLBACK) -> int:
        """Take the waiting work of jobs that may go to either queue to gpu while a gpu worker lives, else where cpu workers live.

        The two queues are those of the model that `queue` belongs to.

        What is under a lease stays with its worker. Returns how many jobs this worker should go on with: one call takes a hundred
        at most, as Redis answers nobody else meanwhile.
        """
        return int(self._run("move", beside(queue, HOME), beside(queue, FALLBACK), worker))

    @_translated
    def claim(self, queue: str, worker: str, *, lease_seconds: float, max_bytes: int, lane: Lane | None = None) -> Claim:
        """Shards of one lane with up to `max_bytes` of input (at least one, when any waits), leased to the worker.

        Without `lane` it is the lane whose turn it is; a shard that was in flight when a worker died then comes first, and alone.
        With `lane` the worker may hold other shards. Who has claimed counts as at work until `release`.
        """
        only = lane.value if lane else ""
        wake, alone, ended, found, *rest = self._run("claim", queue, worker, _milliseconds(lease_seconds), max_bytes, only)
        fates = list(json.loads(ended).values()) if alone else []
        hangs = fates.count("hung")
        deaths = fates.count("died") + hangs
        shards = tuple(
            _claimed(
                (_text(job), Span.parse(_text(span)), int(attempt), _text(model), _text(owner)),
                options,
                block,
                deaths=deaths,
                hangs=hangs,
                waited_seconds=None if waited == b"" else int(waited) / 1000,
                traceparent=_text(traceparent),
            )
            for job, span, attempt, model, owner, waited, options, traceparent, block in zip(*[iter(rest)] * 9, strict=True)
        )
        return Claim(shards, Lane(_text(found)) if shards else None, bool(alone), bool(wake))

    @_translated
    def await_work(self, queue: str, *, seconds: float) -> bool:
        """Waits for new work in an empty queue; whether some came. Sooner than a message by Celery would tell of it."""
        if seconds <= 0:
            return False
        if queue not in self._bells:
            self._bells[queue] = Bell(self._redis, self._key("bell", queue))
        with self._bells[queue] as bell:
            return self._waiting(queue) > 0 or bell.rings(seconds)

    def _waiting(self, queue: str) -> int:
        found = self._redis.hmget(self._key("waiting"), [f"{queue}:{lane.value}" for lane in Lane])
        return sum(int(inputs or 0) for inputs in found)

    @_translated
    def look(self, queue: str, shards: Sequence[ClaimedShard]) -> tuple[bool, list[bool]]:
        """Whether interactive work waits, and for each shard whether the worker still holds it. Writes nothing."""
        waiting, *held = self._run("look", queue, *[part for shard in shards for part in _name(shard)])
        return waiting > 0, [bool(mine) for mine in held]

    def commit(
        self,
        queue: str,
        finished: Sequence[Committed],
        *,
        device: str,
        engine: str,
        dtype: str,
        revision: str,
        parity: float | None = None,
    ) -> list[bool]:
        """Store results, each exactly once. Returns for each whether it was stored.

        A result is dropped when the job has ended or the worker's lease went to another (the attempt number differs).
        """
        return self._store(queue, finished, (device, engine, dtype, revision, parity))

    def _store(self, queue: str, finished: Sequence[Committed], facts: Facts) -> list[bool]:
        return self._commit(queue, finished, [_packed(item) for item in finished], facts)

    @_translated
    def _commit(self, queue: str, finished: Sequence[Committed], blocks: Sequence[bytes], facts: Facts) -> list[bool]:
        if not finished:
            return []
        args: list[Any] = [queue, *("" if fact is None else fact for fact in facts)]
        for item, block in zip(finished, blocks, strict=True):
            result = item.result
            args += _name(item.shard)
            args += [block, result.dimensions, len(result.errors), sum(result.tokens), len(result.truncated), item.cached]
            args.append(json.dumps([json.dumps(asdict(error)) for error in result.errors.values()][:SHOWN_ERRORS]))
            args.append(json.dumps(Counter(error.code for error in result.errors.values())) if result.errors else "")
        return [bool(stored) for stored in self._run("commit", *args)]

    @_translated
    def extend(self, queue: str, worker: str, shards: Sequence[ClaimedShard], *, lease_seconds: float) -> list[bool]:
        """Renew leases. Returns for each whether the worker still holds it."""
        names = [part for shard in shards for part in _name(shard)]
        return [bool(held) for held in self._run("extend", queue, worker, _milliseconds(lease_seconds), *names)]

    @_translated
    def release(self, queue: str, worker: str, shards: Sequence[ClaimedShard] = ()) -> bool:
        """Give shards back, holding nothing against them, and stop counting as at work. Returns whether to send a message."""
        return bool(self._run("release", queue, worker, *[part for shard in shards for part in _name(shard)]))

    @_translated
    def divide(self, queue: str, shard: ClaimedShard) -> bool:
        """Replace a suspect shard by one for each of its inputs. Returns whether the worker still held it."""
        parts: list[Any] = []
        for n, item in enumerate(shard.inputs):
            parts += [str(Span(shard.span.first + n, 1)), pack_inputs([item])]
        return bool(self._run("divide", queue, *_name(shard), *parts))

    @_translated
    def hung(self, queue: str, job_id: str = "", span: str = "", attempt: int = 0) -> bool:
        """Say that the engine does not come back; from a shard that was handed out alone, if one is named. Returns whether that
        was news."""
        return bool(self._run("hung", queue, job_id, span, attempt))

    @_translated
    def report(self, worker: Worker, *, lifetime_seconds: float) -> None:
        """Say that a worker lives. It counts as gone after `lifetime_seconds`."""
        self._run("report", worker.name, _milliseconds(lifetime_seconds), json.dumps(asdict(worker)), *worker.queues)

    @_translated
    def retire(self, name: str, queues: Iterable[str]) -> None:
        """Say that a worker is gone."""
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.unlink(self._key("worker", name))
            pipe.zrem(self._key("workers"), name)
            for queue in queues:
                pipe.zrem(self._key("workers", queue), name)
                pipe.zrem(self._key("draining", queue), name)
            pipe.execute()

    @_translated
    def counters(self) -> dict[str, int]:
        """Totals since the ledger began; `core.ledger` lists them."""
        return {name: int(value) for name, value in _record(self._redis.hgetall(self._key("counters"))).items()}


def rate_limited(limit: str, wait_seconds: float) -> RateLimited:
    """The error of a tenant that has used up `limit`, such as `60 requests a minute (SETTING)`."""
    retry_after = min(LONGEST_RETRY_SECONDS, max(1, math.ceil(wait_seconds)))
    return RateLimited(f"your limit is {limit}; try again in {retry_after} s", retry_after_seconds=retry_after)


def require_same_body(before: str, now: str) -> None:
    """Raises IdempotencyConflict when a key comes with another body than before."""
    if before != now:
        raise IdempotencyConflict(
            "Idempotency-Key was used before with another body or other options; a new job needs a new key",
            param="Idempotency-Key",
        )


def job_not_found(job_id: str, param: str = "id") -> JobNotFound:
    shown = job_id if len(job_id) <= 64 else job_id[:64] + "…"
    return JobNotFound(f"no job {shown!r}; it never existed, was deleted, or its lifetime is over", param=param)


def _job(job_id: str, tenant: str, found: Mapping[Any, Any], errors: Iterable[bytes]) -> Job:
    record = _record(found)
    if record.get("tenant") != tenant:
        raise job_not_found(job_id)
    return Job.from_record(job_id, record, tuple(InputError(**json.loads(error)) for error in errors))


def _returned_job(job_id: str, tenant: str, record: list[bytes], errors: list[bytes]) -> Job:
    """A job that a script returned: names and values of its record by turns."""
    return _job(job_id, tenant, dict(zip(record[::2], record[1::2], strict=True)), errors)


def _newer_layout(found: str) -> NewerLayout:
    return NewerLayout(
        f"Redis holds the ledger of a newer vector-api (layout {found}, this one knows {LAYOUT}); update this process too"
    )


def _require_known(version: bytes | str | None) -> None:
    if version is not None and int(version) > LAYOUT:
        raise _newer_layout(_text(version))


def _by_lane(leases: Iterable[bytes], interactive: int) -> dict[str, int]:
    """Inputs under leases (<job>/<shard>): all are known, and so many of the interactive lane are counted."""
    running = sum(Span.parse(_text(member).split("/")[1]).count for member in leases)
    interactive = min(max(0, interactive), running)
    return {Lane.INTERACTIVE.value: interactive, Lane.BULK.value: running - interactive}


def _claimed(name: tuple[str, Span, int, str, str], options: bytes, block: bytes, **facts: Any) -> ClaimedShard:
    try:
        return ClaimedShard(*name, JobOptions.from_json(options), unpack_inputs(block), **facts)
    except UnreadableBlock as error:
        reason = error.message
    except (ValueError, TypeError):
        reason = "the job's options were written by another version"
    return ClaimedShard(*name, JobOptions(), (), unreadable=reason, **facts)


def _workers(reports: Iterable[Sequence[bytes | None]], now: float) -> list[Worker]:
    """Those whose fields `REPORT` these are; one without a report has gone."""
    return [_worker(report, seen_at, lifetime, now) for report, seen_at, lifetime in reports if report is not None]


def _worker(report: bytes, seen_at: bytes | None, lifetime: bytes | None, now: float) -> Worker:
    found = json.loads(report)
    if seen_at and lifetime:  # an older version's report has its own clock's time, and no lifetime
        found["seen_at"] = int(seen_at) / 1000
        found["silent"] = now - found["seen_at"] > SILENT * int(lifetime) / 1000
    known = {field.name: found[field.name] for field in fields(Worker) if field.name in found}  # newer versions may report more
    return Worker(**(known | {"queues": tuple(found["queues"]), "prompts": tuple(found["prompts"])}))


def _seconds(clock: tuple[int, int]) -> float:
    """Since 1970, from Redis' TIME."""
    return clock[0] + clock[1] / 1e6


def _blocks(shards: Iterable[Shard]) -> list[Any]:
    return [part for shard in shards for part in (str(shard.span), pack_inputs(shard.inputs))]


def _packed(item: Committed) -> bytes:
    """The block to store: nothing for a shard of a dry run, of which only the counts are kept."""
    return b"" if item.shard.options.dry_run else pack_result(item.result)


def _name(shard: ClaimedShard) -> list[Any]:
    return [shard.job_id, str(shard.span), shard.attempt]


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
