"""The cache: a text that comes again is not computed again, and nothing wrong is ever served."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from core.config import DEFAULT_MODEL, Settings
from core.jobs import Job, JobOptions, JobStatus, Lane
from core.ledger import Ledger, NewJob, connect
from core.ledger.cache import Entries, Entry
from core.sharding import Input, cut
from launcher.redis_server import RedisServer
from tests.conftest import QUICK
from tests.fakes import DIMENSIONS, FakeEngine, vector_of
from tests.integration.test_worker import assert_every_vector, ended
from tests.processes import ROOT, Stack, wait_for
from worker.drain import Drain
from worker.engines import Tokens

pytestmark = pytest.mark.integration

PLENTY = 2**30
TEXTS = [f"text number {n} " + "word " * (n % 40) for n in range(120)]


class Counting(FakeEngine):
    """Remembers which texts it has embedded. What it is may be changed by `facts`."""

    def __init__(self, **facts: Any) -> None:
        super().__init__(Settings())
        self.facts = replace(self.facts, **facts)
        self.embedded: list[str] = []

    def embed(self, batch: Sequence[Tokens]) -> np.ndarray:
        self.embedded += [item.text for item in batch]  # type: ignore[attr-defined]
        return super().embed(batch)


class Lengthy(Counting):
    """Its vectors are not of unit length, and some of their numbers are no numbers."""

    def embed(self, batch: Sequence[Tokens]) -> np.ndarray:
        vectors = super().embed(batch) * np.float32(3.7)
        for row, item in enumerate(batch):
            if "LAST" in item.text:  # type: ignore[attr-defined]
                vectors[row, -1] = np.nan
        return vectors


def submit(ledger: Ledger, texts: Sequence[str], job_id: str, *, tenant: str = "default", **options: Any) -> str:
    shards = list(cut(map(Input, texts), max_inputs=16, max_characters=10_000))
    job = NewJob(job_id, tenant, "cpu", Lane.BULK, DEFAULT_MODEL, JobOptions(**options), {}, 600, len(texts), len(shards))
    ledger.submit(job, shards, max_waiting_inputs=10**9)
    return job_id


def drained(ledger: Ledger, engine: FakeEngine, cache_bytes: int = PLENTY) -> Drain:
    """Work until nothing is left."""
    settings = Settings(cache_bytes=cache_bytes, drain_seconds=100)
    found = Drain(engine, ledger, settings, "one@test", wake=lambda queue: None, stopping=lambda: False, linger_seconds=0)
    found.run("cpu")
    return found


def embedded(ledger: Ledger, texts: Sequence[str], job_id: str, engine: Counting | None = None, **job: Any) -> list[str]:
    """The texts of a new job that were computed."""
    engine = engine or Counting()
    submit(ledger, texts, job_id, **job)
    before = len(engine.embedded)
    drained(ledger, engine)
    return engine.embedded[before:]


def test_dry_run_tells_what_is_there(ledger: Ledger) -> None:
    embedded(ledger, TEXTS[:20], "before")
    assert embedded(ledger, TEXTS[:30], "dry", dry_run=True) == []
    job = ledger.get("dry", "default")
    assert (job.counts.done, job.cached, ledger.finished("dry")) == (30, 20, [])
    assert sorted(embedded(ledger, TEXTS[:30], "after")) == sorted(TEXTS[20:30])


def vectors_of(ledger: Ledger, job_id: str) -> list[bytes]:
    return [ledger.result(job_id, span).vectors for span in ledger.finished(job_id)]


# What is computed and what is not ---------------------------------------------------------------------------------------


def test_only_changed_texts_are_computed_again(ledger: Ledger) -> None:
    assert sorted(embedded(ledger, TEXTS, "first")) == sorted(TEXTS)
    changed = [*TEXTS[:50], "another text", *TEXTS[51:]]
    assert embedded(ledger, changed, "second") == ["another text"]
    assert_every_vector(ledger, "second", changed)
    jobs = [ledger.get(job_id, "default") for job_id in ("first", "second")]
    assert [job.cached for job in jobs] == [0, 119]
    assert jobs[1].tokens == sum(len(text.split()) + 2 for text in changed)
    assert ledger.counters()["cached:cpu"] == 119


def test_text_is_found_where_only_the_form_of_the_answer_differs(ledger: Ledger) -> None:
    embedded(ledger, TEXTS, "first")
    assert embedded(ledger, TEXTS, "second", normalize=False, dimensions=3, truncate="error") == []


@pytest.mark.parametrize("options", [{}, {"normalize": False}, {"dimensions": 3}, {"dimensions": 3, "normalize": False}])
def test_hit_is_what_was_computed_to_the_bit(ledger: Ledger, options: dict[str, Any]) -> None:
    embedded(ledger, TEXTS, "seen", Lengthy())
    assert embedded(ledger, TEXTS, "hit", Lengthy(), **options) == []
    submit(ledger, TEXTS, "computed", **options)
    drained(ledger, Lengthy(), cache_bytes=0)
    assert ledger.get("computed", "default").cached == 0
    assert vectors_of(ledger, "hit") == vectors_of(ledger, "computed")


@pytest.mark.parametrize(
    ("facts", "job"),
    [
        ({}, {"tenant": "other"}),
        ({}, {"prompt_name": "query"}),
        ({"prompts": {"query": "another prompt: "}}, {"prompt_name": "query"}),
        ({"model": "another"}, {}),
        ({"revision": "another"}, {}),
        ({"engine": "another"}, {}),
        ({"dtype": "int8"}, {}),
        ({"max_tokens": 128}, {}),
    ],
    ids=str,
)
def test_vector_is_served_to_nobody_who_would_get_another(ledger: Ledger, facts: dict[str, Any], job: dict[str, Any]) -> None:
    embedded(ledger, TEXTS[:5], "first")
    embedded(ledger, TEXTS[:5], "with the prompt", prompt_name="query") if "prompts" in facts else None
    assert len(embedded(ledger, TEXTS[:5], "second", Counting(**facts), **job)) == 5
    assert embedded(ledger, TEXTS[:5], "third", Counting(**facts), **job) == []


def test_model_of_unknown_revision_goes_without(ledger: Ledger) -> None:
    for job_id in ("first", "second"):
        assert len(embedded(ledger, TEXTS[:5], job_id, Counting(revision="unknown"))) == 5


def test_unusual_way_to_cut_goes_without(ledger: Ledger) -> None:
    for job_id in ("first", "second"):
        assert len(embedded(ledger, TEXTS[:5], job_id, truncate="middle")) == 5


def test_without_a_limit_there_is_no_cache(ledger: Ledger, redis_url: str) -> None:
    for job_id in ("first", "second"):
        submit(ledger, TEXTS, job_id)
        engine = Counting()
        drained(ledger, engine, cache_bytes=0)
        assert len(engine.embedded) == len(TEXTS)
    with connect(redis_url, timeout_seconds=5, retries=0) as client:
        assert client.keys("vector-api:cache*") == []


# What is never kept -----------------------------------------------------------------------------------------------------


def test_failures_are_not_kept(ledger: Ledger) -> None:
    texts = ["good", "RAISE an error", "LAST is no number", "also good"]
    for job_id, computed in (("first", {*texts}), ("second", {*texts[1:3]})):
        assert set(embedded(ledger, texts, job_id, Lengthy())) == computed
        errors = ledger.get(job_id, "default").errors
        assert sorted((error.index, error.code) for error in errors) == [(1, "embedding_failed"), (2, "not_finite")]


def test_vector_with_an_undefined_number_that_the_job_does_not_want_is_not_kept(ledger: Ledger) -> None:
    assert len(embedded(ledger, ["LAST is no number"], "cut", Lengthy(), dimensions=2)) == 1
    assert ledger.get("cut", "default").counts.done == 1
    assert len(embedded(ledger, ["LAST is no number"], "whole", Lengthy())) == 1
    assert ledger.get("whole", "default").errors[0].code == "not_finite"


def test_long_text_is_told_to_be_cut_and_fails_where_that_is_an_error(ledger: Ledger) -> None:
    texts = ["short", "word " * 400]
    embedded(ledger, texts, "first")
    assert embedded(ledger, texts, "second") == []
    assert ledger.result("second", ledger.finished("second")[0]).truncated == {1}
    assert ledger.get("second", "default").truncated == 1
    assert embedded(ledger, texts, "refused", truncate="error") == []
    refused = ledger.get("refused", "default")
    assert (refused.cached, refused.errors[0].index, refused.errors[0].code) == (1, 1, "text_too_long")


def test_work_that_was_cancelled_is_not_kept(ledger: Ledger) -> None:
    class Cancelled(Counting):
        def embed(self, batch: Sequence[Tokens]) -> np.ndarray:
            ledger.remove("first", "default")
            return super().embed(batch)

    embedded(ledger, TEXTS[:5], "first", Cancelled())
    assert ledger.get("first", "default").status is JobStatus.CANCELLED
    assert len(embedded(ledger, TEXTS[:5], "second")) == 5


@pytest.mark.parametrize("broken", ["cache", "cache:used"])
def test_broken_cache_is_told_once_and_costs_no_job(
    ledger: Ledger, redis_url: str, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(redis_url, timeout_seconds=5, retries=0) as client:
        client.set(f"vector-api:{broken}", "not what should be here")
    engine = Counting()
    submit(ledger, TEXTS, "first")
    submit(ledger, TEXTS[:20], "second")
    drained(ledger, engine)
    assert [ledger.get(job_id, "default").counts.done for job_id in ("first", "second")] == [120, 20]
    assert len([record for record in caplog.records if "without the cache" in record.message]) == 1


def test_entry_that_cannot_be_read_is_computed(ledger: Ledger, redis_url: str) -> None:
    embedded(ledger, TEXTS[:3], "first")
    with connect(redis_url, timeout_seconds=5, retries=0) as client:
        one, another, _ = client.zrange("vector-api:cache:used", 0, -1)
        client.hset("vector-api:cache", one, b"\xc1")
        client.hset("vector-api:cache", another, Entry(b"short", 1, False).pack())
    assert len(embedded(ledger, TEXTS[:3], "second")) == 2
    assert embedded(ledger, TEXTS[:3], "third") == []


# Memory -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with connect(redis_url, timeout_seconds=5, retries=0) as found:
        yield found
        found.config_set("maxmemory", 0)


EntriesOf = Callable[[int], Entries]


@pytest.fixture
def entries_of(client: redis.Redis) -> EntriesOf:
    """The cache with a limit."""
    return lambda limit_bytes: Entries(Ledger(client, "vector-api:"), limit_bytes)


def some(count: int, dimensions: int = 384) -> dict[bytes, Entry]:
    return {os.urandom(16): Entry(os.urandom(4 * dimensions), 20, False) for _ in range(count)}


def used_long_ago(client: redis.Redis, digests: Sequence[bytes]) -> None:
    client.zadd("vector-api:cache:used", {digest: 1000 + n for n, digest in enumerate(digests)})


@pytest.mark.parametrize(("dimensions", "count"), [(8, 5000), (384, 3000), (768, 2000), (1024, 2000), (4096, 500)])
def test_counted_bytes_are_what_redis_uses_or_a_little_more(
    client: redis.Redis, entries_of: EntriesOf, dimensions: int, count: int
) -> None:
    cache = entries_of(PLENTY)
    cache.keep(some(10, dimensions))
    counted, used = cache.size()[1], client.info("memory")["used_memory"]
    cache.keep(some(count, dimensions))
    counted, used = cache.size()[1] - counted, client.info("memory")["used_memory"] - used
    assert used <= counted, "jobs would get less memory than they were promised"
    assert counted / count <= 1.3 * used / count + 150
    assert cache.size()[0] == count + 10


def test_cache_never_outgrows_its_limit_and_drops_what_was_not_used_for_longest(
    client: redis.Redis, entries_of: EntriesOf
) -> None:
    one = some(1)
    entries_of(PLENTY).keep(one)
    each = entries_of(PLENTY).size()[1]
    cache = entries_of(100 * each)
    old, new = some(99), some(30)
    assert cache.keep(old) == 0
    used_long_ago(client, list(old))
    assert cache.keep(new, used=list(old)[:10]) == 30
    assert cache.size() == (100, 100 * each)
    assert set(cache.find(list(new))) == set(new.values())
    left = [found is not None for found in cache.find(list(old))]
    assert left == [False] * 30 + [True] * 69, "the uses came with the new ones, when these were gone"
    used_long_ago(client, list(old)[30:])
    assert cache.keep({}, used=list(old)[30:40]) == 0
    cache.keep(some(59))
    assert [found is not None for found in cache.find(list(old)[30:])] == [True] * 10 + [False] * 59
    assert cache.find(list(one)) == list(one.values()), "it was used later than these"


def test_note_of_a_use_is_written_once_a_minute(client: redis.Redis, entries_of: EntriesOf) -> None:
    cache, entries = entries_of(PLENTY), some(20)
    cache.keep(entries)

    def written(used: Sequence[bytes]) -> bool:
        before = client.info("persistence")["rdb_changes_since_last_save"]
        cache.keep({}, used=used)
        return bool(client.info("persistence")["rdb_changes_since_last_save"] > before)

    assert not written(list(entries))
    used_long_ago(client, list(entries)[:1])
    assert written(list(entries))
    assert not written(list(entries))
    assert not written([os.urandom(16)])


def test_larger_cache_shrinks_to_a_new_limit_by_steps(entries_of: EntriesOf) -> None:
    entries_of(PLENTY).keep(some(2500))
    held_bytes = entries_of(PLENTY).size()[1]
    cache = entries_of(held_bytes // 10)
    steps = []
    while dropped := cache.keep({}):
        steps.append(dropped)
    assert (sum(steps), max(steps)) == (2250, 1000)
    assert cache.size() == (250, held_bytes // 10)


@pytest.mark.parametrize("limit", [0, 100])
def test_entry_larger_than_the_limit_is_not_kept(client: redis.Redis, entries_of: EntriesOf, limit: int) -> None:
    assert entries_of(limit).keep(some(3)) == 0
    assert client.keys("vector-api:cache*") == []


def test_cache_takes_no_memory_that_jobs_may_need(client: redis.Redis, entries_of: EntriesOf, ledger: Ledger) -> None:
    cache = entries_of(PLENTY)
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 16 * 2**20)
    most = 0.75 * client.info("memory")["maxmemory"]
    while cache.keep(some(500)) == 0:
        assert client.info("memory")["used_memory"] < most
    assert 0.9 * most < client.info("memory")["used_memory"] < most + 2**20
    count = cache.size()[0]
    for n in range(12):
        client.set(f"job {n}", bytes(2**20))
        cache.keep(some(100))
        while cache.keep({}):
            pass
        left = cache.size()[0]
        assert client.info("memory")["used_memory"] < most + 2**20 or left == 0
        assert left <= max(0, count - 400 * n)
    assert left == 0
    assert client.keys("vector-api:cache*") == []


def test_full_server_gets_all_of_it_back(client: redis.Redis, entries_of: EntriesOf, ledger: Ledger) -> None:
    cache = entries_of(PLENTY)
    cache.keep(some(1500))
    client.config_set("maxmemory", 1)
    found = drained(ledger, Counting(), PLENTY)
    found.cache.shrink()
    assert cache.size() == (0, 0)


@pytest.mark.parametrize("lost", ["cache", "cache:used"])
def test_cache_mends_itself_when_half_of_it_was_removed(client: redis.Redis, entries_of: EntriesOf, lost: str) -> None:
    cache = entries_of(PLENTY)
    cache.keep(some(50))
    used_long_ago(client, client.zrange("vector-api:cache:used", 0, -1))
    each = cache.size()[1] // 50
    client.unlink(f"vector-api:{lost}")
    small = entries_of(10 * each)
    small.keep(some(10))
    used_long_ago(client, client.zrange("vector-api:cache:used", 0, -1))
    newest = some(10)
    small.keep(newest)
    assert small.find(list(newest)) == list(newest.values())
    assert small.size() == (10, 10 * each)


def test_command_shows_and_empties_the_cache(client: redis.Redis, entries_of: EntriesOf, redis_url: str) -> None:
    def command(*words: str) -> subprocess.CompletedProcess[str]:
        environ = {"PATH": os.environ["PATH"], "REDIS_URL": redis_url}
        line = [sys.executable, "-m", "core.ledger.cache", *words]
        return subprocess.run(line, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)

    entries_of(PLENTY).keep(some(3))
    counted = entries_of(PLENTY).size()[1]
    assert (shown := command()).stdout == f"3 vectors in {counted} bytes\n", shown.stderr
    assert command("clear").stdout == f"3 vectors in {counted} bytes, removed\n"
    assert client.keys("vector-api:cache*") == []
    assert command("drop").returncode == 2
    redis_url = "redis://127.0.0.1:1/0"
    failed = command("clear")
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (1, "", 1)


# Processes --------------------------------------------------------------------------------------------------------------


def test_second_run_after_a_restart_computes_what_changed_only(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    texts = [f"text {n} of the corpus" for n in range(2000)]
    with RedisServer(tmp_path / "data", {"appendfsync": "no"}) as server:
        stack = Stack(server.url, tmp_path, QUICK | {"CACHE_BYTES": str(PLENTY), "FAKE_SEEN": str(seen)})
        ledger = Ledger(connect(server.url, timeout_seconds=5, retries=20), "vector-api:")
        entries = Entries(ledger, PLENTY)

        def run(job_id: str, texts: Sequence[str], *, kept: int) -> Job:
            """By two workers, which are killed afterwards, as Redis is."""
            workers = [stack.worker(FAKE_BATCH_SECONDS="0.02") for _ in range(2)]
            submit(ledger, texts, job_id)
            job = ended(ledger, job_id)
            wait_for(lambda: entries.size()[0] == kept, what="all vectors kept")
            for worker in workers:
                worker.kill_group()
            server.stop(signal.SIGKILL)
            server.start()
            return job

        try:
            assert run("first", texts, kept=2000).cached == 0
            assert sorted(seen.read_text().splitlines()) == sorted(texts)
            seen.write_text("")
            changed = [f"changed {n}" if n % 100 == 7 else text for n, text in enumerate(texts)]
            job = run("second", changed, kept=2020)
            assert sorted(seen.read_text().splitlines()) == sorted(set(changed) - set(texts))
            assert (job.status, job.counts.done, job.cached) == (JobStatus.SUCCEEDED, 2000, 1980)
            for job_id, inputs in (("first", texts), ("second", changed)):
                assert_every_vector(ledger, job_id, inputs)
        finally:
            stack.close()


def test_raw_vector_is_kept_whole(ledger: Ledger) -> None:
    """As other programs may read it."""
    embedded(ledger, ["a text"], "first", Lengthy(), dimensions=2)
    (entry,) = Entries(ledger, PLENTY).find([digest_of_only(ledger)])
    assert entry is not None
    assert (entry.tokens, entry.truncated, len(entry.vector)) == (4, False, 4 * DIMENSIONS)
    np.testing.assert_array_equal(np.frombuffer(entry.vector, "<f4"), vector_of("a text") * np.float32(3.7))


def digest_of_only(ledger: Ledger) -> bytes:
    (digest,) = ledger._redis.zrange(ledger._key("cache", "used"), 0, -1)
    return digest
