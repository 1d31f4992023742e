"""Connections to Redis that break, in the middle of a reply or of a batch, and a Redis that is slow."""

import signal
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from core.jobs import Lane
from launcher.redis_server import RedisServer
from tests.faults.conftest import NO_FSYNC, Fleet, Hold, fleet_at
from tests.faults.relay import Relay
from tests.integration.test_worker import TEXTS, assert_every_vector
from tests.processes import wait_for

pytestmark = pytest.mark.integration


SCRIPTS = ("submit", "claim", "look", "extend", "commit", "release", "report", "move", "wake")


@pytest.fixture(scope="module")
def relay(server: RedisServer) -> Iterator[Relay]:
    relay = Relay(server.socket)
    with relay.running():
        yield relay


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), NO_FSYNC) as server:
        yield server


@pytest.fixture(scope="module")
def fleet(server: RedisServer, relay: Relay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """An API and a worker that reach Redis through the relay."""
    with fleet_at(tmp_path_factory.mktemp("fleet"), {}, url=relay.url, server=server) as fleet:
        fleet.stack.api()
        fleet.start_workers(1, BATCH_SIZE="1", FAKE_BATCH_SECONDS="0.05", LINGER_SECONDS="0")
        assert post(fleet, "a text", wait=30).json()["status"] == "succeeded"  # so that the server has all scripts
        fleet.wait_for_rest()
        yield fleet


@pytest.fixture(autouse=True)
def same_processes(fleet: Fleet) -> Iterator[None]:
    """No process may end for such reasons."""
    (worker,) = fleet.workers.values()
    children = worker.children()
    yield
    assert worker.popen.poll() is None
    assert worker.children() == children


def post(fleet: Fleet, *texts: str, wait: int = 0) -> httpx.Response:
    return httpx.post(f"{fleet.stack.base_url}/v1/jobs?wait={wait}", json={"inputs": texts}, timeout=60)


def test_reply_of_each_script_that_breaks_off_loses_and_doubles_nothing(fleet: Fleet, relay: Relay) -> None:
    before = fleet.ledger.counters()["inputs:cpu"]
    scripts = {name: fleet.ledger._scripts[name].sha.encode() for name in SCRIPTS}
    relay.cut(requests=scripts.values())
    answer = post(fleet, *TEXTS[:120])
    assert answer.status_code == 202, answer.text
    job_id = answer.json()["id"]
    assert fleet.ended(job_id).counts.done == 120
    assert_every_vector(fleet.ledger, job_id, TEXTS[:120])
    wait_for(lambda: relay.has_cut, what="all the cuts")
    fleet.wait_for_rest()
    assert fleet.ledger.counters()["inputs:cpu"] == before + 120
    assert fleet.ledger.jobs("default")[0][0].id == job_id
    assert len(fleet.ledger.jobs("default")[0]) == 2
    assert fleet.ledger.counters()["recovered"] > 0, "what the worker was not told that it has claimed"


def test_message_of_celery_that_breaks_off_costs_seconds(fleet: Fleet, relay: Relay) -> None:
    for fault in ({"requests": [b"LPUSH"]}, {"replies": [b"embed_pending"]}):  # as it is sent, as it is taken
        fleet.wait_for_rest()
        relay.cut(**fault)
        sent = time.time()
        answer = post(fleet, "a text")
        assert answer.status_code == 202, answer.text
        job = fleet.ended(answer.json()["id"])
        assert (job.ended_at or 0) - sent < 5
        wait_for(lambda: relay.has_cut, what="the cut")


def test_slow_redis_slows_and_breaks_nothing(fleet: Fleet, relay: Relay) -> None:
    relay.delay_seconds = 0.1
    try:
        answer = post(fleet, *TEXTS[:20], wait=30)
    finally:
        relay.delay_seconds = 0.0
    assert answer.status_code == 200, answer.text
    assert_every_vector(fleet.ledger, answer.json()["id"], TEXTS[:20])


def test_connections_closed_in_the_middle_of_a_batch_cost_no_work(fleet: Fleet, hold: Callable[[], Hold]) -> None:
    held, recovered = hold(), fleet.ledger.counters().get("recovered")
    texts = [held.text, *TEXTS[:20]]
    job_id = fleet.submit(*texts, lane=Lane.BULK)
    held.wait_until_held()
    for kind in ("normal", "pubsub"):
        assert int(fleet.redis.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")) > 0
    assert post(fleet, "another").status_code == 202
    held.let_go()
    assert fleet.ended(job_id).counts.done == len(texts)
    assert_every_vector(fleet.ledger, job_id, texts)
    assert fleet.ledger.counters().get("recovered") == recovered


def test_redis_that_stands_still_is_told_and_sat_out(fleet: Fleet, hold: Callable[[], Hold]) -> None:
    held = hold()
    texts = [held.text, *TEXTS[:20]]
    job_id = fleet.submit(*texts, lane=Lane.BULK)
    held.wait_until_held()
    server = fleet.server.process
    assert server is not None
    server.send_signal(signal.SIGSTOP)
    try:
        held.let_go()  # the worker goes on, and waits with its commit
        for _ in range(2):
            answer = post(fleet, "a text")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "ledger_unavailable")
    finally:
        server.send_signal(signal.SIGCONT)
    assert fleet.ended(job_id).counts.done == len(texts)
    assert_every_vector(fleet.ledger, job_id, texts)
    assert post(fleet, "a text", wait=30).json()["status"] == "succeeded"
