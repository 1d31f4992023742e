"""A ledger with the moves that tests make on it, and the check that it contradicts itself nowhere."""

import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import redis

from core.blocks import ResultBlock, pack_inputs
from core.jobs import InputError, Job, JobOptions, JobStatus, Lane
from core.ledger import NO_LIMITS, Claim, ClaimedShard, Committed, Ledger, Limits, NewJob, Worker
from core.sharding import Input, Shard, Span

PREFIX = "test:"
QUEUES = ("cpu", "gpu")
PERMANENT = {f"{PREFIX}waiting", f"{PREFIX}counters"}
"""The only keys that outlive every job and worker."""

ENGINE = {"device": "cpu", "engine": "fake", "dtype": "float32", "revision": "r1"}


def text_of(job_id: str, index: int) -> str:
    return f"{job_id} input {index}"


def shards_of(job_id: str, counts: Iterable[int]) -> list[Shard]:
    """Shards of so many inputs each."""
    shards, first = [], 0
    for count in counts:
        shards.append(Shard(Span(first, count), tuple(Input(text_of(job_id, first + n)) for n in range(count))))
        first += count
    return shards


def bytes_of(inputs: int) -> int:
    """Size of the input block of a shard, for jobs with four characters in their name and indices of one."""
    return len(pack_inputs([Input(text_of("job0", 0))] * inputs))


def vector_of(text: str) -> bytes:
    """A vector of one number that follows from the text."""
    return struct.pack("<f", int(text.rsplit(" ", 1)[1]))


def result_of(
    shard: ClaimedShard, *, failed: Iterable[int] = (), truncated: Iterable[int] = (), dimensions: int = 1
) -> ResultBlock:
    """What an engine gives for the shard: five tokens an input; `failed` and `truncated` are positions in the shard."""
    errors = {n: InputError(shard.span.first + n, "bad", "it is bad", retryable=False) for n in failed}
    return ResultBlock(
        dimensions=dimensions,
        vectors=b"".join(vector_of(item.text) * dimensions for item in shard.inputs),
        tokens=(5,) * shard.span.count,
        truncated=frozenset(truncated),
        errors=errors,
    )


def names(shards: Iterable[ClaimedShard]) -> list[tuple[str, str]]:
    return [(shard.job_id, str(shard.span)) for shard in shards]


class Scenario:
    def __init__(self, client: redis.Redis) -> None:
        self.redis: Any = client
        self.ledger = Ledger(client, PREFIX)

    # Moves ----------------------------------------------------------------------------------------------------------

    def new_job(self, job_id: str, counts: Sequence[int], **fields: Any) -> NewJob:
        values = {
            "tenant": "alice",
            "queue": "cpu",
            "lane": Lane.BULK,
            "model": "m",
            "options": JobOptions(),
            "metadata": {"for": job_id},
            "ttl_seconds": 600,
            "inputs": sum(counts),
            "shards": len(counts),
        }
        return NewJob(id=job_id, **(values | fields))

    def stage(self, job_id: str, counts: Sequence[int]) -> None:
        self.ledger.stage(job_id, shards_of(job_id, counts))

    def submit(
        self,
        job_id: str = "job",
        counts: Sequence[int] = (2, 2),
        *,
        limit: int = 10**9,
        limits: Limits = NO_LIMITS,
        **fields: Any,
    ) -> tuple[str, bool]:
        """Stage and submit a job with shards of so many inputs."""
        self.stage(job_id, counts)
        return self.ledger.submit(self.new_job(job_id, counts, **fields), max_waiting_inputs=limit, limits=limits)

    def claim(self, worker: str = "w1", queue: str = "cpu", *, max_bytes: int = 10**9, **options: Any) -> Claim:
        return self.ledger.claim(queue, worker, **({"lease_seconds": 3600, "max_bytes": max_bytes} | options))

    def claim_one(self, worker: str = "w1", queue: str = "cpu", **options: Any) -> ClaimedShard:
        (shard,) = self.claim(worker, queue, max_bytes=1, **options).shards
        return shard

    def commit(self, *shards: ClaimedShard, queue: str = "cpu", **result: Any) -> list[bool]:
        finished = [Committed(shard, result_of(shard, **result)) for shard in shards]
        return self.ledger.commit(queue, finished, **ENGINE)

    def look(self, *shards: ClaimedShard, queue: str = "cpu") -> tuple[bool, list[bool]]:
        return self.ledger.look(queue, shards)

    def extend(self, *shards: ClaimedShard, worker: str = "w1", queue: str = "cpu", lease_seconds: float = 3600) -> list[bool]:
        return self.ledger.extend(queue, worker, shards, lease_seconds=lease_seconds)

    def release(self, *shards: ClaimedShard, worker: str = "w1", queue: str = "cpu") -> bool:
        return self.ledger.release(queue, worker, shards)

    def report(
        self, name: str = "w1", queues: tuple[str, ...] = ("cpu",), *, lifetime_seconds: float = 600, **facts: Any
    ) -> None:
        worker = Worker(name, queues, "idle", "m", "r1", "fake", "cpu", "float32", 1, 256, (), facts)
        self.ledger.report(worker, lifetime_seconds=lifetime_seconds)

    def finish_job(self, job_id: str = "job", counts: Sequence[int] = (2,), **fields: Any) -> None:
        """A job from its submit to its end. No other may wait."""
        self.submit(job_id, counts, **fields)
        self.commit(*self.claim().shards)

    # Time, without waiting for it -----------------------------------------------------------------------------------

    def expire_leases(self, queue: str = "cpu") -> None:
        """What happens when no worker renews for a lease's time."""
        for name in ("leases", "draining"):
            if members := self.redis.zrange(self.key(name, queue), 0, -1):
                self.redis.zadd(self.key(name, queue), dict.fromkeys(members, 1))

    def forget_message(self, queue: str = "cpu") -> None:
        """A second passes, so the last message counts as lost."""
        self.redis.delete(self.key("wake", queue))

    def expire_job(self, job_id: str) -> None:
        """The lifetime of an ended job is over."""
        tenant, idempotency = self.redis.hmget(self.key("job", job_id), "tenant", "idempotency")
        for name in ("job", "vectors", "errors"):
            self.redis.delete(self.key(name, job_id))
        if idempotency:
            self.redis.delete(self.key("idempotency", tenant.decode(), idempotency.decode()))
        for member in self.redis.zrange(self.key("expiring"), 0, -1):
            if member.startswith(f"{job_id}/".encode()):
                self.redis.zadd(self.key("expiring"), {member: 1})

    # What is there --------------------------------------------------------------------------------------------------

    def key(self, *parts: str) -> str:
        return PREFIX + ":".join(parts)

    def all_keys(self) -> set[str]:
        """But for the layout's version, which is there from the first job or worker on, and the throughput, which expires."""
        found = {name.decode() for name in self.redis.scan_iter(count=10_000)} - {self.key("version")}
        return {name for name in found if not name.startswith(self.key("throughput", ""))}

    def snapshot(self) -> dict[bytes, bytes]:
        """Every key with its value."""
        return {name: self.redis.dump(name) for name in self.redis.scan_iter(count=10_000)}

    def job(self, job_id: str = "job", tenant: str = "alice") -> Job:
        return self.ledger.get(job_id, tenant)

    def waiting(self, queue: str = "cpu", lane: Lane = Lane.BULK) -> int:
        return int(self.redis.hget(self.key("waiting"), f"{queue}:{lane.value}") or 0)

    def strings(self, kind: str, *parts: str) -> list[str]:
        """Members of a list, a sorted set or a hash (its fields)."""
        name = self.key(kind, *parts)
        match self.redis.type(name):
            case b"list":
                found = self.redis.lrange(name, 0, -1)
            case b"zset":
                found = self.redis.zrange(name, 0, -1)
            case b"hash":
                found = self.redis.hkeys(name)
            case _:
                found = []
        return [member.decode() for member in found]

    def vectors(self, job_id: str = "job") -> list[float]:
        """The numbers of all finished inputs, in order."""
        blocks = [self.ledger.result(job_id, span) for span in self.ledger.finished(job_id)]
        return [number for block in blocks for (number,) in struct.iter_unpack("<f", block.vectors)]

    # The check ------------------------------------------------------------------------------------------------------

    def assert_consistent(self) -> None:
        """Every promise that the keys make to each other holds."""
        Keys(self.redis).assert_consistent()


class Keys:
    """All keys as they are at one moment."""

    def __init__(self, client: Any) -> None:
        names = [name.decode() for name in client.keys(f"{PREFIX}*")]
        with client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.type(name)
                pipe.pttl(name)
            found = pipe.execute()
            types, self.lifetimes = found[::2], dict(zip(names, found[1::2], strict=True))
            for name, kind in zip(names, types, strict=True):
                if kind == b"list":
                    pipe.lrange(name, 0, -1)
                elif kind == b"zset":
                    pipe.zrange(name, 0, -1, withscores=True)
                elif kind == b"set":
                    pipe.smembers(name)
                elif name.startswith(tuple(f"{PREFIX}{kind}:" for kind in ("inputs", "vectors", "content", "lines"))):
                    pipe.hkeys(name)
                elif kind == b"hash":
                    pipe.hgetall(name)
                else:
                    pipe.get(name)
            contents = zip(names, pipe.execute(), strict=True)
            self.bytes = {
                name.removeprefix(f"{PREFIX}inputs:"): sum(map(len, client.hvals(name)))
                for name in names
                if name.startswith(f"{PREFIX}inputs:")
            }
        """Of the input blocks, by job."""
        self.values = {name: _decoded(content) for name, content in contents if content}  # others expired meanwhile

    def of(self, *parts: str) -> Any:
        """What a key holds; an empty list if it is not there."""
        return self.values.get(PREFIX + ":".join(parts), [])

    def jobs(self) -> dict[str, dict[str, str]]:
        """Records by id."""
        prefix = f"{PREFIX}job:"
        return {name.removeprefix(prefix): record for name, record in self.values.items() if name.startswith(prefix)}

    def assert_consistent(self) -> None:
        jobs = self.jobs()
        waiting: Counter[str] = Counter()
        limited: Counter[str] = Counter()
        lines: defaultdict[str, list[str]] = defaultdict(list)
        tenants: defaultdict[str, set[str]] = defaultdict(set)
        held: dict[str, list[str]] = {job_id: [] for job_id in jobs}
        for queue in QUEUES:
            for member in self.of("suspects", queue):
                job_id, shard = member.split("/")
                assert jobs[job_id]["queue"] == queue
                held[job_id].append(shard)
            for member in dict(self.of("leases", queue)):
                job_id, shard = member.split("/")
                assert jobs[job_id]["queue"] == queue or "home" in jobs[job_id], "a job that cannot move has a lease elsewhere"
                held[job_id].append(shard)
                if jobs[job_id]["lane"] == Lane.INTERACTIVE:
                    limited[f"interactive:{queue}"] += Span.parse(shard).count
            movable = {job_id for job_id, record in jobs.items() if "home" in record and record["queue"] == queue}
            live = {job_id for job_id in movable if not JobStatus(jobs[job_id]["status"]).ended}
            assert set(dict(self.of("auto", queue))) == live, "a job that may move is not found, or one is that may not"
        for job_id, record in jobs.items():
            if JobStatus(record["status"]).ended:
                assert not held[job_id], "an ended job has suspects or leases"
                self._assert_ended(job_id, record)
                continue
            self._assert_live(job_id, record, held[job_id])
            if "bytes" in record:  # else it was submitted by a version that did not count
                left = int(record["total"]) - int(record.get("done", 0)) - int(record.get("failed", 0))
                limited += Counter(
                    {f"jobs:{record['tenant']}": 1, f"inputs:{record['tenant']}": left, "bytes": self.bytes[job_id]}
                )
                assert int(record["bytes"]) == self.bytes[job_id], "the job's counter of input bytes is off"
            if "counted" in record:
                assert record["counted"] == record["status"], "a job is counted among those of another status"
                limited[record["counted"]] += 1
            lane = f"{record['queue']}:{record['lane']}"
            pending = self.of("pending", job_id)
            if pending:
                lines[f"{lane}:{record['tenant']}"].append(job_id)
                tenants[lane].add(record["tenant"])
            suspects = [member.split("/") for member in self.of("suspects", record["queue"])]
            waits = [*pending, *(shard for owner, shard in suspects if owner == job_id)]
            waiting[lane] += sum(Span.parse(name).count for name in waits)
        assert self._sorted("line") == {name: sorted(job_ids) for name, job_ids in lines.items()}, "a job has no place, or two"
        assert self._sorted("tenants") == {name: sorted(found) for name, found in tenants.items()}, "a tenant has no turn, or two"
        counted = {name: int(number) for name, number in dict(self.of("waiting")).items() if number != "0"}
        assert counted == +waiting, "the counter of waiting inputs is off"
        for member, size_bytes in dict(self.of("sizes")).items():
            limited += Counter({"files": int(size_bytes), f"files:{member.split('/')[1]}": int(size_bytes)})
        assert set(dict(self.of("sizes"))) == set(dict(self.of("uploads"))), "files that are counted and never forgotten"
        assert {name: int(n) for name, n in dict(self.of("live")).items()} == limited, "what is counted of live jobs is off"
        for name, members in self._sorted("due").items():
            for member, _ in members:
                assert self.of("delivery", member)["state"] == "waiting", f"{member} in due:{name} has ended and is tried again"
        removed = {member.split("/")[0] for member in dict(self.of("garbage"))}
        assert not removed & (set(jobs) | set(self.of("stored"))), "objects of a job that is there are to be removed"

    def _sorted(self, kind: str) -> dict[str, list[str]]:
        prefix = f"{PREFIX}{kind}:"
        return {name.removeprefix(prefix): sorted(found) for name, found in self.values.items() if name.startswith(prefix)}

    def _assert_live(self, job_id: str, record: dict[str, str], held: list[str]) -> None:
        inputs, vectors = self.of("inputs", job_id), self.of("vectors", job_id)
        position = 0
        for span in sorted(Span.parse(name) for name in [*inputs, *vectors]):
            assert span.first == position, "an input is in no shard, or in two"
            position = span.end
        assert position == int(record["total"])
        assert sorted([*self.of("pending", job_id), *held]) == sorted(inputs), "a shard is in no place, or in two"
        assert set(self.of("attempts", job_id)) <= set(inputs)
        deaths = self.of("deaths", job_id)
        assert set(deaths) <= set(inputs)
        assert not set(deaths) & set(self.of("pending", job_id)), "a suspect waits among others"
        ended = int(record.get("done", 0)) + int(record.get("failed", 0))
        assert ended == sum(Span.parse(name).count for name in vectors)
        assert ended < position, "all inputs ended, the job did not"
        for kind in ("job", "inputs", "pending", "attempts", "deaths", "vectors", "errors", "batch", "lines"):
            assert self.lifetimes.get(f"{PREFIX}{kind}:{job_id}", -1) == -1, f"{kind} of a live job would expire"

    def _assert_ended(self, job_id: str, record: dict[str, str]) -> None:
        done, failed, total = (int(record.get(name, 0)) for name in ("done", "failed", "total"))
        stored = sum(Span.parse(name).count for name in self.of("vectors", job_id))
        without = {"deleted:output", "deleted:error"} & set(dict(self.of("batch", job_id)))
        assert stored == done + failed or (without and not stored)
        if record["status"] == JobStatus.CANCELLED:
            assert done + failed < total
        else:
            assert done + failed == total
            assert (record["status"] == JobStatus.FAILED) == (done == 0)
        for kind in ("inputs", "pending", "attempts", "deaths"):
            assert f"{PREFIX}{kind}:{job_id}" not in self.values, f"an ended job has {kind}"
        for kind in ("job", "vectors", "errors", "batch", "lines"):
            assert self.lifetimes.get(f"{PREFIX}{kind}:{job_id}", 1) > 0, f"{kind} of an ended job would stay for ever"
        assert dict(self.of("expiring"))[f"{job_id}/{record['tenant']}"] == float(record["expires_at"])
        assert job_id in dict(self.of("jobs", record["tenant"]))


def _decoded(value: Any) -> Any:
    match value:
        case bytes():
            return value.decode()
        case dict():
            return {name.decode(): content.decode() for name, content in value.items()}
        case [[bytes(), float()], *_] | [(bytes(), float()), *_]:
            return [(member.decode(), score) for member, score in value]
        case _:
            return [member.decode() for member in value]
