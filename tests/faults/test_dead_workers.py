"""Workers that die, or come back from the dead, in the middle of a batch: others do their work soon, and it is stored once."""

import os
import signal
import time
from collections.abc import Callable

import pytest

from core.jobs import JobStatus
from tests.faults.conftest import LEASE_SECONDS, Fleet, Hold
from tests.integration.test_worker import assert_every_vector
from tests.processes import wait_for

pytestmark = pytest.mark.integration

RECOVERY_SECONDS = LEASE_SECONDS + 2 + 2
"""The promise is the lease and two seconds; the rest is for a busy test machine."""


@pytest.fixture(autouse=True)
def workers(fleet: Fleet) -> None:
    """Four of them, at rest."""
    fleet.start_workers(4 - len(fleet.living()))


def test_worker_that_wakes_after_its_lease_changes_nothing_and_works_on(fleet: Fleet, hold: Callable[[], Hold]) -> None:
    held = hold()
    texts = [held.text, "a neighbour"]
    job_id, name = fleet.take(*texts)
    held.wait_until_held()
    (zombie,) = fleet.workers[name].children()
    os.kill(zombie, signal.SIGSTOP)
    try:
        struck = time.time()
        held.let_go()
        job = fleet.ended(job_id)
        assert 0 < (job.ended_at or 0) - struck < RECOVERY_SECONDS
        record = fleet.redis.hgetall(f"vector-api:job:{job_id}")
        stored = fleet.ledger.counters()["inputs:cpu"]
    finally:
        os.kill(zombie, signal.SIGCONT)

    def batches() -> int:
        return sum(w.facts["batches"] for w in fleet.ledger.workers() if w.name.startswith(f"{name}@"))

    wait_for(batches, what="the zombie's batch")
    fleet.wait_for_rest()
    assert fleet.redis.hgetall(f"vector-api:job:{job_id}") == record
    assert fleet.ledger.counters()["inputs:cpu"] == stored
    assert_every_vector(fleet.ledger, job_id, texts)

    others = [process for other, process in fleet.workers.items() if other != name]
    for process in others:
        process.signal(signal.SIGSTOP)  # the parent, which takes the messages
    try:
        assert fleet.ended(fleet.submit("only the zombie can take this")).status is JobStatus.SUCCEEDED
    finally:
        for process in others:
            process.signal(signal.SIGCONT)
    assert fleet.workers[name].children() == [zombie]


def test_work_of_a_dead_process_starts_again_within_the_lease_and_two_seconds(fleet: Fleet, hold: Callable[[], Hold]) -> None:
    strikes: list[Callable[[str], None]] = [
        lambda name: os.kill(fleet.workers[name].children()[0], signal.SIGKILL),
        lambda name: fleet.workers[name].signal(signal.SIGKILL),
        lambda name: fleet.workers[name].kill_group(),
    ]
    struck: dict[str, float] = {}
    texts: dict[str, list[str]] = {}
    for strike in strikes:
        held = hold()
        job_texts = [held.text, "a neighbour"]
        job_id, name = fleet.take(*job_texts)
        held.wait_until_held()
        texts[job_id] = job_texts
        strike(name)
        struck[job_id] = time.time()
        held.let_go()
    for job_id, moment in struck.items():
        job = fleet.ended(job_id)
        assert (job.counts.done, job.counts.failed) == (2, 0)
        assert (job.ended_at or 0) - moment < RECOVERY_SECONDS
        assert_every_vector(fleet.ledger, job_id, texts[job_id])
    assert fleet.ledger.counters()["recovered"] >= len(strikes)
