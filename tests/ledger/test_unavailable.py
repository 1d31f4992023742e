"""Redis that is away, full, or restarted."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.errors import LedgerUnavailable
from core.jobs import JobStatus, Lane
from core.ledger import connect
from launcher.redis_server import RedisServer
from tests.ledger.scenario import Scenario, shards_of

pytestmark = pytest.mark.integration

CALLS: dict[str, Callable[[Scenario], object]] = {
    "ping": lambda at: at.ledger.ping(),
    "stage": lambda at: at.stage("job", (1,)),
    "unstage": lambda at: at.ledger.unstage("job"),
    "find_repeated": lambda at: at.ledger.find_repeated("alice", "k"),
    "submit": lambda at: at.ledger.submit(at.new_job("job", (1,)), max_waiting_inputs=1),
    "waiting_inputs": lambda at: at.ledger.waiting_inputs(),
    "require_room": lambda at: at.ledger.require_room("alice", max_waiting_inputs=1),
    "spend": lambda at: at.ledger.spend("requests", "alice", 60, 1),
    "get": lambda at: at.job(),
    "outcome": lambda at: at.ledger.outcome("job", "alice"),
    "drop": lambda at: at.ledger.drop([("job", "alice")]),
    "status": lambda at: at.ledger.status("job"),
    "jobs": lambda at: at.ledger.jobs("alice"),
    "remove": lambda at: at.ledger.remove("job", "alice"),
    "cancel": lambda at: at.ledger.cancel("job", "alice"),
    "finished": lambda at: at.ledger.finished("job"),
    "result": lambda at: at.ledger.result("job", shards_of("job", (1,))[0].span),
    "ended_jobs": lambda at: next(at.ledger.ended_jobs()),
    "await_work": lambda at: at.ledger.await_work("cpu", seconds=1),
    "wants_wake": lambda at: at.ledger.wants_wake("cpu"),
    "workers": lambda at: at.ledger.workers(),
    "queue_states": lambda at: at.ledger.queue_states(["cpu"]),
    "claim": lambda at: at.claim(),
    "extend": lambda at: at.extend(),
    "look": lambda at: at.look(),
    "release": lambda at: at.release(),
    "hung": lambda at: at.ledger.hung("cpu", "job", "0+1", 1),
    "report": lambda at: at.report(),
    "move": lambda at: at.ledger.move("c1"),
    "retire": lambda at: at.ledger.retire("w1", ["cpu"]),
    "counters": lambda at: at.ledger.counters(),
    "survey": lambda at: at.ledger.survey(["cpu"]),
    "memory": lambda at: at.ledger.memory(),
}


@pytest.fixture(scope="module")
def gone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scenario]:
    """A ledger whose server has stopped."""
    server = RedisServer(tmp_path_factory.mktemp("gone"))
    with server, connect(server.url, timeout_seconds=0.8, retries=1) as client:
        client.ping()
        server.stop()
        yield Scenario(client)


@pytest.mark.parametrize("name", CALLS)
def test_server_that_is_away_is_reported_within_a_second(gone: Scenario, name: str) -> None:
    started = time.monotonic()
    with pytest.raises(LedgerUnavailable, match="Redis: ConnectionError"):
        CALLS[name](gone)
    assert time.monotonic() - started < 1


def test_every_public_method_is_among_them(gone: Scenario) -> None:
    methods = {name for name in vars(type(gone.ledger)) if not name.startswith("_")}
    assert methods - set(CALLS) == {"commit", "divide"}  # these need a claim


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "data") as server:
        yield server


def test_full_server_takes_no_new_jobs_but_ends_those_it_took(own_server: RedisServer) -> None:
    with connect(own_server.url, timeout_seconds=5, retries=0) as client:
        at = Scenario(client)
        at.report("w1")
        for n in range(3):
            at.submit(f"job{n}", (1, 1))
        given_back, *held = [at.claim_one() for _ in range(3)]
        at.submit("fast", (1,), lane=Lane.INTERACTIVE)
        at.submit("auto", (1,), moves=True)
        at.stage("staged", (1,))
        client.config_set("maxmemory", 1)
        for refused in (
            lambda: at.stage("new", (1,)),
            lambda: at.ledger.submit(at.new_job("staged", (1,)), max_waiting_inputs=100),
        ):
            with pytest.raises(LedgerUnavailable, match="OutOfMemory"):
                refused()
        at.assert_consistent()
        at.report("w1")
        assert [worker.name for worker in at.ledger.workers()] == ["w1"]
        held += [*at.claim(lane=Lane.INTERACTIVE).shards, at.claim_one()]
        assert at.extend(*held) == [True] * 4
        assert at.commit(*held) == [True] * 4
        at.release(given_back)
        at.report("g1", ("gpu",))
        assert at.ledger.move("c1") == 0
        assert at.job("auto").queue == "gpu"
        assert at.ledger.remove("job2", "alice") is not None
        assert at.ledger.remove("job2", "alice") is None
        at.assert_consistent()
        client.config_set("maxmemory", 0)
        assert at.commit(*at.claim().shards) == [True]
        at.assert_consistent()


def test_killed_server_has_everything_it_answered_for(own_server: RedisServer) -> None:
    with connect(own_server.url, timeout_seconds=5, retries=5) as client:
        at = Scenario(client)
        for n in range(20):
            at.submit(f"job{n}", (1, 1))
        first, second = at.claim_one(), at.claim_one()
        at.commit(first)
        own_server.stop(signal.SIGKILL)
        own_server.start()
        at.assert_consistent()
        assert at.waiting() == 38
        assert at.commit(first, second) == [False, True]
        assert at.job("job0").status is JobStatus.SUCCEEDED
        assert at.commit(*at.claim().shards) == [True] * 38
        at.assert_consistent()


def test_server_without_its_scripts_gets_them_again(own_server: RedisServer) -> None:
    with connect(own_server.url, timeout_seconds=5, retries=0) as client:
        at = Scenario(client)
        at.submit("job", (1,))
        client.script_flush()
        assert at.commit(*at.claim().shards) == [True]


def test_each_script_may_be_sent_twice(own_server: RedisServer) -> None:
    """A connection that breaks before the answer makes redis-py send the command again, on a new one."""
    with connect(own_server.url, timeout_seconds=5, retries=1) as client:
        at = Scenario(client)
        run = at.ledger._run

        def run_twice(script: str, *args: object) -> object:
            first, second = run(script, *args), run(script, *args)
            at.assert_consistent()
            return first if script == "claim" else second

        at.ledger._run = run_twice  # type: ignore[method-assign]
        for n in range(4):
            assert at.submit(f"job{n}", (1, 1))[0] == f"job{n}"
        at.release(at.claim_one())
        lost = at.claim_one()
        assert at.extend(lost) == [True]
        assert at.commit(lost) == [False]  # stored the first time
        assert at.job(lost.job_id).counts.done == 1
        assert at.ledger.remove("job3", "alice") is not None
        at.expire_leases()
        while claim := at.claim("w2").shards:
            at.commit(*claim)
            at.expire_leases()
        assert [at.job(f"job{n}").status for n in range(4)] == [JobStatus.SUCCEEDED] * 3 + [JobStatus.CANCELLED]
