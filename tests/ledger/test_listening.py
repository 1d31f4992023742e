"""A worker that ran out of work hears of new work by the bell."""

import threading

import pytest

from core.ledger import Ledger
from tests.ledger.scenario import PREFIX, Scenario
from tests.processes import wait_for

NEVER, SOON = 0.05, 10.0


def listeners(at: Scenario) -> int:
    return int(at.redis.pubsub_numsub(at.key("bell", "cpu"))[0][1])


def test_nothing_comes(at: Scenario) -> None:
    for _ in range(2):
        assert not at.ledger.await_work("cpu", seconds=NEVER)
    wait_for(lambda: not listeners(at), what="the end of listening")
    assert at.submit() == ("job", True), "nobody listens any more, so a message is due"


def test_work_that_waits_already_needs_no_bell(at: Scenario) -> None:
    at.submit()
    assert at.ledger.await_work("cpu", seconds=SOON)


def test_without_patience_nobody_listens(at: Scenario) -> None:
    at.submit()
    assert not at.ledger.await_work("cpu", seconds=0)


def test_bell_of_the_last_time_is_not_heard_again(at: Scenario) -> None:
    at.submit("job1")
    assert at.ledger.await_work("cpu", seconds=SOON)
    at.submit("job2")
    at.claim()
    assert not at.ledger.await_work("cpu", seconds=NEVER)


def test_message_goes_out_when_a_listener_does_not_react(at: Scenario) -> None:
    with at.redis.pubsub() as frozen:
        frozen.subscribe(at.key("bell", "cpu"))
        wait_for(lambda: listeners(at), what="the listener")
        assert at.submit() == ("job", False), "the bell rang instead of a message"
        assert at.ledger.wants_wake("cpu")


@pytest.mark.parametrize("workers", [1, 2])
def test_submit_rings_instead_of_sending_a_message(at: Scenario, workers: int) -> None:
    heard: list[bool] = []

    def listen() -> None:
        heard.append(Ledger(at.redis, PREFIX).await_work("cpu", seconds=SOON))

    threads = [threading.Thread(target=listen) for _ in range(workers)]
    for thread in threads:
        thread.start()
    wait_for(lambda: listeners(at) == workers, what="the listeners")
    assert at.submit() == ("job", False)
    for thread in threads:
        thread.join(timeout=SOON)
    assert heard == [True] * workers
