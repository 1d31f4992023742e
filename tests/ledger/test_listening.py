"""A worker that ran out of work hears of new work by the bell."""

import threading

import pytest

from tests.ledger.scenario import Scenario

NEVER, SOON = 0.05, 10.0


def test_nothing_comes(at: Scenario) -> None:
    assert not at.ledger.await_work("cpu", "w1", seconds=NEVER)
    assert at.submit() == ("job", True), "nobody listens any more, so a message is due"


def test_work_that_waits_already_needs_no_bell(at: Scenario) -> None:
    at.submit()
    assert at.ledger.await_work("cpu", "w1", seconds=SOON)


def test_without_patience_nobody_listens(at: Scenario) -> None:
    at.submit()
    assert not at.ledger.await_work("cpu", "w1", seconds=0)


def test_bell_that_rings_too_late_to_be_heard_is_made_up_for(at: Scenario) -> None:
    blpop = at.redis.blpop

    def hears_nothing(names: list[str], timeout: float) -> None:
        assert at.submit() == ("job", False), "the bell rang instead of a message"

    at.redis.blpop = hears_nothing
    assert at.ledger.await_work("cpu", "w1", seconds=SOON)
    at.redis.blpop = blpop
    assert not at.claim("w1").wake


def test_worker_that_died_while_it_listened_costs_one_bell(at: Scenario) -> None:
    at.ledger._run("listen", "cpu", "dead", 10_000)
    assert not at.submit("job1")[1]
    assert 0 < at.redis.pttl(at.key("bell", "cpu")) <= 1000
    assert at.ledger.wants_wake("cpu")


def test_retired_worker_listens_no_longer(at: Scenario) -> None:
    at.ledger._run("listen", "cpu", "w1", 10_000)
    at.ledger.retire("w1", ["cpu"])
    assert at.submit("job1")[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_submit_rings_for_one_worker_instead_of_sending_a_message(at: Scenario, workers: int) -> None:
    heard: list[str] = []

    def listen(worker: str) -> None:
        if at.ledger.await_work("cpu", worker, seconds=SOON):
            heard.append(worker)

    threads = [threading.Thread(target=listen, args=(f"w{n}",)) for n in range(workers)]
    for thread in threads:
        thread.start()
    while at.redis.zcard(at.key("listening", "cpu")) < workers:
        pass
    for n in range(workers):
        assert at.submit(f"job{n}", (1,)) == (f"job{n}", False)
    for thread in threads:
        thread.join(timeout=SOON)
    assert len(heard) == workers
    assert at.redis.zcard(at.key("listening", "cpu")) == 0
