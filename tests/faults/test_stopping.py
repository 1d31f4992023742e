"""Workers that are told to stop: what they have in hand is finished or given back at once, and no attempt is counted."""

import itertools
import signal
import threading
from collections.abc import Callable

import pytest

from core.jobs import Lane
from tests.faults.conftest import Fleet, Hold
from tests.integration.test_worker import TEXTS, assert_every_vector
from tests.processes import Process, wait_for

pytestmark = pytest.mark.integration

GRACE_SECONDS = 10
"""Far more than a batch takes, and as long as `docker stop` waits."""

SETTINGS = {"BATCH_SIZE": "1", "FAKE_BATCH_SECONDS": "0.01", "LEASE_SECONDS": "600"}
"""No test waits for a lease to end."""


@pytest.fixture
def worker(fleet: Fleet) -> Process:
    """The only worker, at rest."""
    fleet.start_workers(1 - len(fleet.living()), **SETTINGS)
    (worker,) = fleet.living().values()
    return worker


@pytest.fixture
def long_job(fleet: Fleet, worker: Process, hold: Callable[[], Hold]) -> tuple[str, list[str], Hold]:
    """A job of many batches, its texts, and what holds the first batch up."""
    held = hold()
    texts = [f"{held.text} {'word ' * 60}", *TEXTS[:100]]  # the longest comes first
    job_id = fleet.submit(*texts, lane=Lane.BULK)
    held.wait_until_held()
    return job_id, texts, held


def assert_another_does_it(fleet: Fleet, job_id: str, texts: list[str]) -> None:
    fleet.start_workers(1, **SETTINGS)
    job = fleet.ended(job_id)
    assert (job.counts.done, job.counts.failed) == (len(texts), 0)
    assert_every_vector(fleet.ledger, job_id, texts)


@pytest.mark.parametrize("more_signals", [0, 2], ids=["once", "again and again"])
def test_worker_that_is_told_to_stop_ends_its_batch_and_gives_the_rest_back(
    fleet: Fleet, worker: Process, long_job: tuple[str, list[str], Hold], more_signals: int
) -> None:
    job_id, texts, held = long_job
    worker.signal(signal.SIGTERM)
    wait_for(lambda: "Warm shutdown" in worker.output(), what="the worker's notice")
    for _ in range(more_signals):
        worker.signal(signal.SIGTERM)
    held.let_go()
    assert worker.popen.wait(timeout=GRACE_SECONDS) == 0, worker.output()
    assert fleet.waiting() == len(texts) - fleet.ledger.get(job_id, "default").counts.done > 0
    assert not fleet.redis.exists(
        f"vector-api:deaths:{job_id}", "vector-api:leases:cpu", "vector-api:suspects:cpu", "vector-api:draining:cpu"
    )
    assert fleet.ledger.workers() == []
    assert_another_does_it(fleet, job_id, texts)


def test_worker_that_is_told_to_quit_loses_nothing(fleet: Fleet, worker: Process, long_job: tuple[str, list[str], Hold]) -> None:
    job_id, texts, held = long_job
    worker.signal(signal.SIGQUIT)
    worker.popen.wait(timeout=GRACE_SECONDS)
    held.let_go()
    for name in ("leases:cpu", "draining:cpu"):  # it gave nothing back: ten minutes pass
        for member in fleet.redis.zrange(f"vector-api:{name}", 0, -1):
            fleet.redis.zadd(f"vector-api:{name}", {member: 1})
    assert_another_does_it(fleet, job_id, texts)


def test_workers_replaced_one_after_the_other_under_load_lose_no_work_and_no_time(fleet: Fleet, worker: Process) -> None:
    fleet.start_workers(1, **SETTINGS)
    before = fleet.ledger.counters()
    job_ids: list[str] = []
    done = threading.Event()

    def send() -> None:
        for n in itertools.count():
            job_ids.append(fleet.submit(*TEXTS[:10], lane=(Lane.BULK, Lane.INTERACTIVE)[n % 2]))
            if done.wait(0.1):
                return

    def stored() -> int:
        return fleet.ledger.counters()["inputs:cpu"]

    sender = threading.Thread(target=send)
    sender.start()
    try:
        for old in fleet.living().values():
            enough = stored() + 50
            wait_for(lambda enough=enough: stored() > enough, what="work in full swing")  # type: ignore[misc]
            assert old.stop(seconds=GRACE_SECONDS) == 0, old.output()
            fleet.start_worker(**SETTINGS)
    finally:
        done.set()
        sender.join()
    for job_id in job_ids:
        job = fleet.ended(job_id)
        assert (job.counts.done, job.counts.failed) == (10, 0)
        assert_every_vector(fleet.ledger, job_id, TEXTS[:10])
    assert stored() == before["inputs:cpu"] + 10 * len(job_ids)
    assert fleet.ledger.counters().get("recovered") == before.get("recovered"), "what had to wait for a lease"
