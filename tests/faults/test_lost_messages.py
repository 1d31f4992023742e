"""Celery's messages get lost in every way there is, and cost the jobs they told of five seconds at most."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from core.jobs import JobStatus
from tests.faults.conftest import Fleet, Hold
from tests.processes import wait_for

pytestmark = pytest.mark.integration

MESSAGE_SECONDS = 5

MESSAGES = [f"vector-api:celery:{name}" for name in ("cpu", "unacked", "unacked_index")]


def die_path(fleet: Fleet) -> Path:
    return fleet.stack.folder / "died-with-message"


@pytest.fixture(autouse=True)
def workers(fleet: Fleet) -> None:
    """Two of them, at rest. The first that gets a message dies with it."""
    fleet.start_workers(2 - len(fleet.living()), DIE_WITH_MESSAGE=str(die_path(fleet)))


@contextlib.contextmanager
def parents_stopped(fleet: Fleet) -> Iterator[None]:
    """The processes that take messages and look for work by themselves do neither."""
    living = fleet.living().values()
    for process in living:
        process.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in living:
            process.signal(signal.SIGCONT)


def seconds_until_ended(fleet: Fleet, job_id: str, since: float) -> float:
    job = fleet.ended(job_id)
    assert job.status is JobStatus.SUCCEEDED
    return (job.ended_at or 0) - since


def test_worker_that_dies_between_taking_a_message_and_noting_it_loses_no_work(fleet: Fleet) -> None:
    with parents_stopped(fleet):
        job_id = fleet.submit("a text")
    wait_for(die_path(fleet).exists, what="the worker that took the message")
    assert seconds_until_ended(fleet, job_id, die_path(fleet).stat().st_mtime) < MESSAGE_SECONDS
    dead = [process for process in fleet.workers.values() if process.popen.poll() is not None]
    assert [process.popen.returncode for process in dead] == [-signal.SIGKILL]


def test_api_that_dies_between_accepting_a_job_and_telling_of_it_loses_nothing(fleet: Fleet) -> None:
    body, headers = {"inputs": ["a text"]}, {"Idempotency-Key": "the same request"}
    api = fleet.stack.api(module="tests.faults.api")
    with pytest.raises(httpx.TransportError):
        httpx.post(f"{fleet.stack.base_url}/v1/jobs", json=body, headers=headers, timeout=30)
    died = time.time()
    assert api.popen.wait(timeout=10) == -signal.SIGKILL
    (job,), _ = fleet.ledger.jobs("default", limit=1)
    assert seconds_until_ended(fleet, job.id, died) < MESSAGE_SECONDS
    fleet.stack.api()
    answer = httpx.post(f"{fleet.stack.base_url}/v1/jobs?wait=10", json=body, headers=headers, timeout=30).json()
    assert (answer["id"], answer["status"]) == (job.id, "succeeded")


def test_messages_deleted_before_a_worker_took_them_cost_seconds(fleet: Fleet) -> None:
    with parents_stopped(fleet):
        wait_for(lambda: not fleet.redis.info("clients")["blocked_clients"], what="the end of each BRPOP")
        job_ids = [fleet.submit(f"text {n}") for n in range(5)]
        assert (fleet.waiting(), fleet.redis.llen(MESSAGES[0])) == (5, 1)
        assert fleet.redis.delete(*MESSAGES) > 0
        deleted = time.time()
    for job_id in job_ids:
        assert seconds_until_ended(fleet, job_id, deleted) < MESSAGE_SECONDS


def test_messages_deleted_while_a_worker_has_them_cost_nothing_else(fleet: Fleet, hold: Callable[[], Hold]) -> None:
    held = hold()
    job_id, _ = fleet.take(held.text, "a neighbour")
    held.wait_until_held()
    assert fleet.redis.delete(*MESSAGES) > 0
    held.let_go()
    assert fleet.ended(job_id).counts.done == 2
    after = time.time()
    job_ids = [fleet.submit(f"text {n}") for n in range(3)]
    for job_id in job_ids:
        assert seconds_until_ended(fleet, job_id, after) < MESSAGE_SECONDS
    fleet.wait_for_rest()
    assert fleet.ledger.counters().get("recovered", 0) == 0
