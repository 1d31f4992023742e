"""A job's progress as events: their order, their contents, and when they stop."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import orjson
import pytest

from api.errors import UNREACHABLE
from api.progress import ALIVE, WINDOW_SECONDS, Pace, write_events
from core.errors import JobNotFound, LedgerUnavailable
from core.jobs import Counts, Job, JobStatus
from tests.unit.test_results import job_of


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def running(done: int, failed: int = 0) -> Job:
    return replace(job_of(100, JobStatus.RUNNING), counts=Counts(100, done, failed))


def told(jobs: list[Job | Exception], ticks: int | None = None) -> list[tuple[str, str, Any]]:
    """The events of a job that looks like this second by second: name, id and data; comments are left as they are."""
    clock, looks = Clock(), iter(jobs)

    def look() -> Job:
        found = next(looks)
        if isinstance(found, Exception):
            raise found
        return found

    def seconds() -> Iterator[None]:
        for _ in range(ticks or len(jobs)):
            yield
            clock.now += 1

    pieces = [piece.decode() for piece in write_events(look, seconds(), Pace(clock))]
    assert pieces[0] == "retry: 2000\n\n"
    return [_read(piece) for piece in pieces[1:]]


def _read(piece: str) -> tuple[str, str, Any]:
    assert piece.endswith("\n\n")
    if piece == ALIVE.decode():
        return "comment", "", None
    fields = dict(line.split(": ", 1) for line in piece.strip().split("\n"))
    assert list(fields) in (["id", "event", "data"], ["event", "data"])
    return fields["event"], fields.get("id", ""), orjson.loads(fields["data"])


def test_progress_has_counts_rate_and_time_left_and_ends_with_the_record() -> None:
    ended = replace(job_of(100), counts=Counts(100, 99, 1))
    events = told([running(0), running(20), running(40, 10), ended])
    assert [event[:2] for event in events] == [("progress", "0"), ("progress", "20"), ("progress", "50"), ("end", "end")]
    assert events[0][2] == {
        "id": "j",
        "status": "running",
        "counts": {"total": 100, "done": 0, "failed": 0},
        "progress": 0.0,
        "inputs_per_second": None,
        "remaining_seconds": None,
    }
    assert (events[1][2]["inputs_per_second"], events[1][2]["remaining_seconds"]) == (20.0, 4.0)
    assert (events[2][2]["inputs_per_second"], events[2][2]["remaining_seconds"]) == (25.0, 2.0)
    assert (events[3][2]["object"], events[3][2]["status"], events[3][2]["counts"]["failed"]) == ("job", "succeeded", 1)


def test_job_that_stands_still_sends_comments_and_no_time_left() -> None:
    events = told([running(0)] * 5)
    assert [event[0] for event in events] == ["progress", "progress", "comment", "comment", "comment"]
    assert (events[1][2]["inputs_per_second"], events[1][2]["remaining_seconds"]) == (0.0, None)


def test_ended_job_is_one_event() -> None:
    assert [event[0] for event in told([job_of(100)] * 3)] == ["end"]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [(JobNotFound("no job 'j'"), "job_not_found", "no job 'j'"), (LedgerUnavailable("Redis"), "ledger_unavailable", "Redis")],
)
def test_error_is_the_last_event(error: Exception, code: str, message: str) -> None:
    *_, last = told([running(3), error, running(4)])
    assert last[0] == "error"
    assert (last[2]["error"]["code"], last[2]["error"]["message"]) == (code, message)


def test_error_event_gives_no_host_away() -> None:
    error = LedgerUnavailable("Redis: cannot connect to secret.host:6379")
    error.__cause__ = OSError()
    (event,) = told([error])
    assert event[2]["error"]["message"] == UNREACHABLE


def test_events_are_over_with_their_ticks() -> None:
    assert [event[0] for event in told([running(1), running(2), running(3)], ticks=2)] == ["progress", "progress"]


def test_rate_is_that_of_the_window() -> None:
    clock = Clock()
    pace = Pace(clock)
    rates = []
    for second in range(60):
        clock.now = 100.0 + second
        rates.append(pace.look(min(second, 30) * 10))
    assert rates[0] is None
    assert rates[1:31] == pytest.approx([10.0] * 30)
    assert rates[30 + int(WINDOW_SECONDS) // 3] == pytest.approx(20 / 3)
    assert rates[-1] == 0.0
