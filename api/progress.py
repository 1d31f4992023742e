"""A job's progress as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

    progress   counts, rate and time that is left: at first, and whenever one of them has changed, once a second at most
    end        the job's record; the last event
    error      the service's error shape; the last event, and coming back makes sense unless the job is gone

Every event tells the whole state, so a client that comes back has missed nothing. Its `Last-Event-ID` matters in one case: who
has seen the `end` is told to stay away, with 204, which ends a browser's EventSource.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from api.errors import body_of
from api.schemas import job_record
from core.errors import VectorApiError
from core.jobs import Job

MEDIA_TYPE = "text/event-stream"
END = "end"
"""The id of the last event."""

WINDOW_SECONDS = 15.0
"""The rate is that of the last so many seconds: workers commit shards, whose inputs come in lumps."""

RETRY_MILLISECONDS = 2000
ALIVE = b":\n\n"
"""A comment. Sent each second in which nothing else is: it finds out that a client has gone, and keeps proxies from closing."""


class Pace:
    """How fast a job goes on, as seen by one who looks now and then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def look(self, ended: int) -> float | None:
        """Inputs per second in the window, when so many have ended by now; None while there is nothing to compare with."""
        now = self._clock()
        self._seen.append((now, ended))
        while len(self._seen) > 2 and self._seen[1][0] <= now - WINDOW_SECONDS:
            self._seen.popleft()
        since, before = self._seen[0]
        return (ended - before) / (now - since) if now > since else None


def write_events(look: Callable[[], Job], ticks: Iterator[None], pace: Pace | None = None) -> Iterator[bytes]:
    """The events of a job, until it ends, cannot be seen any more, or the ticks are over.

    Args:
        look: reads the job; called once a tick.
        ticks: come at least once a second.
    """
    pace, told = pace or Pace(), None
    yield f"retry: {RETRY_MILLISECONDS}\n\n".encode()
    for _ in ticks:
        try:
            job = look()
        except VectorApiError as error:
            yield _event("error", body_of(error))
            return
        if job.status.ended:
            yield _event(END, orjson.dumps(job_record(job)), END)
            return
        ended = job.counts.done + job.counts.failed
        progress = _progress(job, pace.look(ended))
        yield ALIVE if progress == told else _event("progress", orjson.dumps(progress), str(ended))
        told = progress


def _progress(job: Job, rate: float | None) -> dict[str, Any]:
    left = job.counts.total - job.counts.done - job.counts.failed
    record = job_record(job, with_errors=False)
    return {name: record[name] for name in ("id", "status", "counts", "progress")} | {
        "inputs_per_second": None if rate is None else round(rate, 3),
        "remaining_seconds": round(left / rate, 1) if rate else None,
    }


def _event(name: str, data: bytes, event_id: str = "") -> bytes:
    head = f"id: {event_id}\n" if event_id else ""
    return f"{head}event: {name}\ndata: ".encode() + data + b"\n\n"
