"""What the API keeps between requests: the workers' list, messages on their way, requests that wait for a job."""

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import fakeredis
import pytest

from api.answered_jobs import AnsweredJobs
from api.app import MOST_LARGE_BODIES, create_app
from api.ended_jobs import EndedJobs
from api.live_workers import LiveWorkers
from api.services import LARGE_BYTES
from api.wakes import Wakes
from core.config import Settings
from core.errors import LedgerUnavailable, PlacesFull
from core.jobs import Counts, JobStatus
from core.ledger import Ledger, Worker
from core.models import Model
from tests.processes import wait_for
from tests.unit.test_results import ALL, FinishedShards, job_of


def worker_named(name: str, *queues: str) -> Worker:
    return Worker(name, queues, "idle", "m", "r", "e", "cpu", "float32", 8, 256, (), {})


def test_live_workers_are_read_again_when_the_list_is_old() -> None:
    ledger, now = Ledger(fakeredis.FakeRedis(), "test:"), [100.0]
    workers = LiveWorkers(ledger, fresh_seconds=1.0, clock=lambda: now[0])
    assert workers.queues() == frozenset()
    ledger.report(worker_named("a", "cpu"), lifetime_seconds=60)
    ledger.report(worker_named("b", "gpu", "cpu"), lifetime_seconds=60)
    now[0] += 0.9
    assert workers.get() == ()
    now[0] += 0.2
    assert [worker.name for worker in workers.get()] == ["a", "b"]
    assert workers.queues() == {"cpu", "gpu"}


def test_worker_that_still_has_another_model_tells_nothing_about_this_one() -> None:
    ledger = Ledger(fakeredis.FakeRedis(), "test:")
    ledger.report(worker_named("a", "cpu"), lifetime_seconds=60)
    ledger.report(replace(worker_named("b", "cpu"), model="before"), lifetime_seconds=60)
    assert [worker.name for worker in LiveWorkers(ledger).of(Model("m", default=True))] == ["a"]


class Broker:
    """Takes messages, one at a time, when it is let."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.open = threading.Event()

    def send(self, queue: str) -> None:
        self.open.wait(10)
        if queue == "bad":
            raise OSError("no broker")
        self.sent.append(queue)


def test_message_is_sent_without_making_the_caller_wait() -> None:
    broker = Broker()
    wakes = Wakes(broker.send)
    for queue in ("cpu", "gpu", "bad", "cpu", "gpu"):
        wakes.send(queue)
    assert broker.sent == []
    broker.open.set()
    wait_for(lambda: len(broker.sent) >= 2, what="the messages")
    wakes.send("cpu")
    wait_for(lambda: broker.sent.count("cpu") >= 2, what="a message after one that failed")


def test_messages_do_not_pile_up_behind_a_broker_that_hangs() -> None:
    broker = Broker()
    wakes = Wakes(broker.send)
    for _ in range(1000):
        wakes.send("cpu")
    broker.open.set()
    wakes.send("gpu")
    wait_for(lambda: "gpu" in broker.sent, what="the last message")
    assert broker.sent.count("cpu") <= 2


class Jobs(Ledger):
    """The side of a ledger that waiting needs: statuses, and a channel that can be cut."""

    def __init__(self) -> None:
        self.statuses: dict[str, JobStatus] = {}
        self.told = threading.Condition()
        self.messages: list[str] = []
        self.is_cut = False
        self.listeners = 0
        self.refused = 0

    def status(self, job_id: str) -> JobStatus | None:
        return self.statuses.get(job_id)

    def ended_jobs(self) -> Iterator[str | None]:
        if self.is_cut:
            self.refused += 1
            raise LedgerUnavailable("cut")
        self.listeners += 1
        return self._messages()

    def _messages(self) -> Iterator[str | None]:
        while not self.is_cut:
            with self.told:
                self.told.wait(0.1)
                found, self.messages = self.messages, []
            yield from found
            yield None
        raise LedgerUnavailable("cut")

    def end(self, job_id: str, *, tell: bool = True) -> None:
        self.statuses[job_id] = JobStatus.SUCCEEDED
        if tell:
            with self.told:
                self.messages.append(job_id)
                self.told.notify_all()


def waiting(ended: EndedJobs, job_id: str, seconds: float = 30) -> threading.Thread:
    thread = threading.Thread(target=ended.wait, args=(job_id, seconds))
    thread.start()
    return thread


@pytest.mark.parametrize("tell", [True, False], ids=["told", "message lost"])
def test_waiter_returns_when_its_job_ends(tell: bool) -> None:
    jobs = Jobs()
    jobs.statuses = {"mine": JobStatus.RUNNING, "other": JobStatus.RUNNING}
    ended = EndedJobs(jobs, most_waiting=4)
    threads = [waiting(ended, "mine") for _ in range(3)]
    other = waiting(ended, "other")
    wait_for(lambda: jobs.listeners, what="the listener")
    jobs.end("mine", tell=tell)
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert other.is_alive()
    jobs.end("other")
    other.join(10)
    assert jobs.listeners == 1
    assert not ended._events, "nobody is remembered who does not wait"


def test_waiter_survives_a_cut_channel() -> None:
    jobs = Jobs()
    jobs.statuses = {"mine": JobStatus.RUNNING}
    ended = EndedJobs(jobs, most_waiting=4)
    thread = waiting(ended, "mine")
    wait_for(lambda: jobs.listeners == 1, what="the listener")
    jobs.is_cut = True
    wait_for(lambda: jobs.refused, what="the listener's notice")
    jobs.is_cut = False
    wait_for(lambda: jobs.listeners == 2, what="the listener's return")
    jobs.end("mine")
    thread.join(10)
    assert not thread.is_alive()


def test_no_wait_for_jobs_that_ended_or_are_gone_nor_without_a_place() -> None:
    jobs = Jobs()
    jobs.statuses = {"done": JobStatus.FAILED, "live": JobStatus.QUEUED}
    ended = EndedJobs(jobs, most_waiting=1)
    ended.wait("done", 1000)
    ended.wait("gone", 1000)
    ended.wait("live", 0)
    thread = waiting(ended, "live")
    wait_for(lambda: ended._events, what="the one place taken")
    ended.wait("live", 1000)
    ended.stopping = lambda: True
    thread.join(10)
    assert not thread.is_alive()


def test_large_bodies_are_read_a_few_at_a_time_and_small_ones_whenever_they_come() -> None:
    services = create_app(Settings()).extensions["services"]
    large = b"x" * (LARGE_BYTES + 1)
    places = [services.room_for(large) for _ in range(MOST_LARGE_BODIES)]
    with pytest.raises(PlacesFull, match=f"{MOST_LARGE_BODIES} JSON bodies"):
        services.room_for(large)
    services.room_for(large[1:]).close()
    places[0].close()
    services.room_for(large).close()


def test_one_map_is_computed_at_a_time() -> None:
    app = create_app(Settings(), FinishedShards(replace(job_of(7), counts=Counts(7, done=7)), ALL))
    with app.extensions["services"].maps.require():
        refused = app.test_client().get("/v1/jobs/j/map")
    assert (refused.status_code, refused.get_json()["error"]["code"]) == (429, "too_many_at_once")
    for _ in range(2):
        assert app.test_client().get("/v1/jobs/j/map").status_code == 200


def test_waiter_leaves_when_it_has_given_up() -> None:
    jobs = Jobs()
    jobs.statuses = {"live": JobStatus.QUEUED}
    ended = EndedJobs(jobs, most_waiting=1)
    asked = iter([False, True])
    ended.wait_in_place("live", 1000, given_up=lambda: next(asked))
    assert not ended._events


class Dropping(Ledger):
    """The side of a ledger that drops jobs; the first call fails."""

    def __init__(self) -> None:
        self.calls: list[list[tuple[str, str]]] = []

    def drop(self, jobs: Iterable[tuple[str, str]]) -> None:
        self.calls.append(list(jobs))
        if len(self.calls) == 1:
            raise LedgerUnavailable("away")


def test_answered_jobs_are_dropped_together_and_a_failure_ends_nothing() -> None:
    ledger = Dropping()
    answered = AnsweredJobs(ledger)
    for n in range(250):
        answered.remove(f"job{n}", "alice")
    wait_for(lambda: sum(map(len, ledger.calls)) == 250, what="all jobs")
    assert [job for call in ledger.calls for job in call] == [(f"job{n}", "alice") for n in range(250)]
    assert len(ledger.calls) < 50
    assert max(map(len, ledger.calls)) <= 100


def test_place_is_taken_once_and_given_back_once() -> None:
    ended = EndedJobs(Jobs(), most_waiting=2)
    places = [ended.require_place(), ended.require_place()]
    with pytest.raises(PlacesFull) as found:
        ended.require_place()
    assert found.value.retry_after_seconds > 0
    places[0].close()
    places[0].close()
    ended.require_place()
    with pytest.raises(PlacesFull):
        ended.require_place()


def test_ticks_come_each_second_and_as_soon_as_the_job_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs()
    jobs.statuses = {"mine": JobStatus.RUNNING}
    ended = EndedJobs(jobs, most_waiting=1)
    ticks = ended.ticks("mine")
    next(ticks)
    wait_for(lambda: jobs.listeners, what="the listener")
    started = time.monotonic()
    next(ticks)
    assert time.monotonic() - started >= 0.9
    monkeypatch.setattr("api.ended_jobs.CHECK_SECONDS", 60.0)
    jobs.end("mine")
    next(ticks)
    assert time.monotonic() - started < 30
    monkeypatch.setattr("api.ended_jobs.CHECK_SECONDS", 0.1)
    ended.stopping = lambda: True
    assert list(ticks) == []
    assert not ended._events, "nobody is remembered who does not wait"
