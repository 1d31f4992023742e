"""Redis full, restarted, with a damaged file, or empty: what it has is done, what it lost is told, and nothing spins."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.jobs import Lane
from core.queues import send_embed_pending
from tests.faults.conftest import Fleet, Hold
from tests.integration.test_worker import TEXTS, assert_every_vector
from tests.processes import wait_for

pytestmark = pytest.mark.integration

ANSWER_SECONDS = 3
"""The promise is one second, see `test_api_redis_down`; the rest is for a busy test machine."""

RESTING_PER_SECOND = 30
"""Requests to Redis of an idle worker and an idle API: more than they need, far fewer than of one that spins."""


@pytest.fixture(scope="module", autouse=True)
def processes(fleet: Fleet) -> None:
    """An API and a worker, the same from the first test to the last."""
    fleet.stack.api()
    fleet.start_workers(1, BATCH_SIZE="1", FAKE_BATCH_SECONDS="0.01")


@pytest.fixture(autouse=True)
def none_ends(fleet: Fleet) -> Iterator[None]:
    before = {process.pid: process.children() for process in fleet.stack.started}
    yield
    assert {process.pid: process.children() for process in fleet.stack.started if process.pid in before} == before


def call(fleet: Fleet, method: str, path: str, **content: Any) -> httpx.Response:
    """An answer, which comes at once whatever Redis does."""
    started = time.monotonic()
    answer = httpx.request(method, f"{fleet.stack.base_url}{path}", timeout=60, **content)
    assert time.monotonic() - started < ANSWER_SECONDS
    return answer


def post(fleet: Fleet, *texts: str) -> str:
    answer = call(fleet, "POST", "/v1/jobs", json={"inputs": texts})
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def assert_works(fleet: Fleet) -> None:
    """A new job is done, soon after the API is ready."""
    wait_for(lambda: call(fleet, "GET", "/readyz").status_code == 200, what="readiness")
    job_id = post(fleet, *TEXTS[:20])
    assert fleet.ended(job_id).counts.done == 20
    assert_every_vector(fleet.ledger, job_id, TEXTS[:20])


def requests(fleet: Fleet) -> int:
    """How many of those there were that work is looked for, taken and told of by."""
    found = fleet.redis.info("commandstats")
    return sum(found.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "brpop", "lpush", "subscribe"))


def assert_rests(fleet: Fleet) -> None:
    """An idle worker asks Redis seldom, and does not compute."""
    fleet.wait_for_rest()
    (worker,) = fleet.living().values()
    asked, computed = requests(fleet), cpu_seconds(worker.pid, *worker.children())
    began = time.monotonic()
    wait_for(lambda: time.monotonic() - began > 1.5, what="some time")
    seconds = time.monotonic() - began
    assert (requests(fleet) - asked) / seconds < RESTING_PER_SECOND
    assert (cpu_seconds(worker.pid, *worker.children()) - computed) / seconds < 0.3


def cpu_seconds(*pids: int) -> float:
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(found[11]) + int(found[12]) for found in fields) / os.sysconf("SC_CLK_TCK")


def test_full_redis_ends_what_it_took_and_goes_on_when_there_is_memory(fleet: Fleet, hold: Callable[[], Hold]) -> None:
    held = hold()
    texts = [held.text, *TEXTS[:40]]
    running = fleet.submit(*texts, lane=Lane.BULK)
    held.wait_until_held()
    waiting = [post(fleet, *TEXTS[:20]) for _ in range(3)]
    send_embed_pending(fleet.celery, "cpu")
    fleet.redis.config_set("maxmemory", 1)
    second = fleet.start_worker(wait=False)
    try:
        answer = call(fleet, "POST", "/v1/jobs", json={"inputs": ["a text"]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "ledger_unavailable")
        assert call(fleet, "GET", f"/v1/jobs/{running}").json()["status"] == "running"
        held.let_go()
        assert fleet.ended(running).counts.done == len(texts)
        assert_every_vector(fleet.ledger, running, texts)
        # Celery cannot note that it has taken the message; it takes one when the task before has ended
        wait_for(lambda: not fleet.redis.exists("vector-api:celery:cpu"), what="a worker that takes the message")
        wait_for(lambda: "used memory > 'maxmemory'" in second.output(), what="a worker that starts meanwhile")
    finally:
        fleet.redis.config_set("maxmemory", 0)
    for job_id in waiting:
        assert fleet.ended(job_id).counts.done == 20
        assert_every_vector(fleet.ledger, job_id, TEXTS[:20])
    fleet.wait_for_rest()
    assert len(fleet.ledger.workers()) == 2
    assert second.stop() == 0, second.output()
    assert_works(fleet)


def test_file_that_ends_in_the_middle_of_a_record_costs_that_record(fleet: Fleet) -> None:
    (worker,) = fleet.living().values()
    done = post(fleet, *TEXTS[:20])
    assert fleet.ended(done).counts.done == 20
    fleet.wait_for_rest()
    os.killpg(worker.pid, signal.SIGSTOP)
    waiting = post(fleet, *TEXTS[:20])
    file = max(fleet.server.folder.rglob("*.aof"), key=lambda found: found.stat().st_mtime_ns)
    before = file.stat().st_size
    cut_off = post(fleet, *TEXTS)
    half = (before + file.stat().st_size) // 2
    fleet.server.stop(signal.SIGKILL)
    os.truncate(file, half)
    fleet.server.start()
    os.killpg(worker.pid, signal.SIGCONT)
    wait_for(lambda: call(fleet, "GET", "/readyz").status_code == 200, what="readiness")
    assert call(fleet, "GET", f"/v1/jobs/{cut_off}").status_code == 404
    assert fleet.ended(waiting).counts.done == 20
    for job_id in (done, waiting):
        assert_every_vector(fleet.ledger, job_id, TEXTS[:20])
    assert_works(fleet)


def start_empty(fleet: Fleet) -> None:
    fleet.server.stop(signal.SIGKILL)
    for file in fleet.server.folder.rglob("*.aof*"):
        file.unlink()
    fleet.server.start()


LOSSES: dict[str, Callable[[Fleet], object]] = {"FLUSHALL": lambda fleet: fleet.redis.flushall(), "no file": start_empty}


@pytest.mark.parametrize("loss", LOSSES)
def test_redis_that_lost_its_data_says_so_and_nothing_spins(fleet: Fleet, hold: Callable[[], Hold], loss: str) -> None:
    held = hold()
    done, running = post(fleet, "a text"), fleet.submit(held.text, *TEXTS[:40], lane=Lane.BULK)
    held.wait_until_held()
    waiting = post(fleet, *TEXTS[:20])
    LOSSES[loss](fleet)
    held.let_go()
    wait_for(lambda: call(fleet, "GET", "/readyz").status_code == 200, what="readiness")
    for job_id in (done, running, waiting):
        assert call(fleet, "GET", f"/v1/jobs/{job_id}").status_code == 404
        assert call(fleet, "GET", f"/v1/jobs/{job_id}/result").status_code == 404
        assert call(fleet, "DELETE", f"/v1/jobs/{job_id}").status_code == 404
    assert call(fleet, "GET", "/v1/jobs").json()["data"] == []
    assert_rests(fleet)
    assert_works(fleet)
    assert set(map(int, fleet.redis.hvals("vector-api:waiting"))) == {0}
    assert call(fleet, "GET", f"/v1/jobs/{running}").status_code == 404
