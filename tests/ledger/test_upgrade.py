"""Ledgers that older versions have written are worked off; one of a newer version is not touched."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from core.config import Settings
from core.errors import NewerLayout
from core.jobs import Job, JobStatus
from core.ledger import Ledger, StoringLedger, connect
from core.ledger.ledger import LAYOUT
from core.result_store import ResultStore
from core.sharding import Input, Shard, Span
from tests.fakes import FakeEngine
from tests.integration.test_worker import assert_every_vector
from tests.ledger.dump import PREFIX, TENANT, restore, texts_of
from tests.ledger.scenario import Scenario
from worker.drain import Drain

pytestmark = pytest.mark.integration

DUMPS = sorted((Path(__file__).parent / "dumps").glob("layout-*.json"))
TO_DO = ("divided", "gpu-only", "interactive", "movable", "queued", "released", "running", "suspects")
ENDED = {
    "done": (JobStatus.SUCCEEDED, 5, 1),
    "all-failed": (JobStatus.FAILED, 0, 6),
    "stored": (JobStatus.SUCCEEDED, 6, 0),
    "cancelled": (JobStatus.CANCELLED, 2, 0),
}


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    with connect(redis_url, timeout_seconds=5, retries=0) as client:
        yield client


@pytest.fixture(params=DUMPS, ids=lambda file: file.stem)
def ledger(request: pytest.FixtureRequest, server: redis.Redis, tmp_path: Path) -> Ledger:  # type: ignore[override]
    """What an older version has left behind."""
    store = ResultStore(f"file://{tmp_path}/results", timeout_seconds=5, retries=0)
    restore(request.param, server, store)
    return StoringLedger(server, PREFIX, store, min_bytes=10**9)


def outcome(job: Job) -> tuple[JobStatus, int, int]:
    return job.status, job.counts.done, job.counts.failed


def leases_run_out(server: redis.Redis) -> None:
    for queue in ("cpu", "gpu"):
        if members := server.zrange(f"{PREFIX}leases:{queue}", 0, -1):
            server.zadd(f"{PREFIX}leases:{queue}", dict.fromkeys(members, 1))  # type: ignore[arg-type]


def drain(ledger: Ledger) -> None:
    settings = Settings.from_env({"MODEL_NAME": "m"})
    worker = Drain(
        FakeEngine(settings), ledger, settings, "new@test", wake=lambda queue: None, stopping=lambda: False, linger_seconds=0
    )
    for queue in ("gpu", "cpu"):
        worker.run(queue)


def test_jobs_of_an_older_version_are_worked_off(ledger: Ledger, server: redis.Redis) -> None:
    leases_run_out(server)
    drain(ledger)
    for job_id in TO_DO:
        assert outcome(ledger.get(job_id, TENANT)) == (JobStatus.SUCCEEDED, 6, 0), job_id
        assert_every_vector(ledger, job_id, texts_of(job_id))


def test_work_that_an_old_worker_still_has_is_left_to_it(ledger: Ledger, server: redis.Redis) -> None:
    drain(ledger)
    assert outcome(ledger.get("running", TENANT)) == (JobStatus.RUNNING, 4, 0)
    assert server.zrange(f"{PREFIX}leases:cpu", 0, -1) == [b"running/2+2"]


def test_what_had_ended_stays_as_it_was(ledger: Ledger) -> None:
    drain(ledger)
    for job_id, expected in ENDED.items():
        assert outcome(ledger.get(job_id, TENANT)) == expected
        assert sum(span.count for span in ledger.finished(job_id)) == sum(expected[1:])
    assert_every_vector(ledger, "done", texts_of("done"), but=frozenset({2}))
    assert_every_vector(ledger, "stored", texts_of("stored"))
    assert ledger.get("done", TENANT).errors[0].code == "text_too_long"
    assert ledger.status("deleted") is None


def test_promises_to_clients_are_kept(ledger: Ledger, server: redis.Redis) -> None:
    assert ledger.find_repeated(TENANT, "digest-of-key") == ("queued", "body")
    assert {job.id for job in ledger.jobs(TENANT, limit=100)[0]} == {*TO_DO, *ENDED}
    assert ledger.remove("released", TENANT) is not None
    assert ledger.remove("suspects", TENANT) is not None
    leases_run_out(server)
    drain(ledger)
    for job_id in (*TO_DO, *ENDED):
        assert ledger.remove(job_id, TENANT) is None
    assert ledger.waiting_inputs() == 0
    left = {name.decode().removeprefix(PREFIX) for name in server.scan_iter()}
    assert {name for name in left if name.split(":")[0] in ("job", "inputs", "attempts", "deaths", "vectors", "errors")} == {
        "inputs:staged"
    }
    assert not [name for name in left if name.startswith(("leases", "suspects", "line", "tenants", "live", "auto"))]


def test_older_layout_is_marked_by_the_first_that_writes(ledger: Ledger, server: redis.Redis) -> None:
    assert server.get(f"{PREFIX}version") is None
    drain(ledger)
    ledger.stage("more", [Shard(Span(0, 1), (Input("text"),))])
    at = Scenario(server)
    at.report()
    at.submit("job", (1,))
    assert server.get(at.key("version")) == str(LAYOUT).encode()


def test_newer_layout_is_not_touched(server: redis.Redis) -> None:
    at = Scenario(server)
    at.submit("job", (1, 1))
    held = at.claim_one()
    server.set(at.key("version"), LAYOUT + 1)
    before = at.snapshot()
    for call in (
        at.ledger.ping,
        at.job,
        at.ledger.workers,
        at.claim,
        at.report,
        at.submit,
        lambda: at.commit(held),
        lambda: at.extend(held),
        lambda: at.release(held),
        lambda: at.ledger.wants_wake("cpu"),
        lambda: at.ledger.remove("job", "alice"),
    ):
        with pytest.raises(NewerLayout, match=rf"layout {LAYOUT + 1}, this one knows {LAYOUT}") as error:
            call()
        assert error.value.__cause__ is None, "the API would hide the reason"
    assert at.snapshot() == before
