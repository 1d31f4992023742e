"""Wait for jobs to end without asking Redis all the time."""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from api.places import Places
from core.errors import LedgerUnavailable
from core.ledger import Ledger

log = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
"""How often a waiter asks for its job's status, in case the message was lost, and looks whether its client is still there."""

RECONNECT_SECONDS = 1.0


class EndedJobs:
    """Requests that wait for their job, told by one thread that listens to the ledger.

    The thread starts with the first waiter, in the process that serves it. A waiter registers first and reads the status next,
    so a job that ends in between is seen; a message that gets lost costs at most `CHECK_SECONDS`.
    """

    def __init__(self, ledger: Ledger, *, most_waiting: int, most_streams: int = 1) -> None:
        self._ledger = ledger
        self._events: defaultdict[str, set[threading.Event]] = defaultdict(set)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._places = Places(most_waiting, "requests that wait for a job")
        self._streams = Places(most_streams, "streams of events")
        self.stopping: Callable[[], bool] = lambda: False
        """Whether the process is about to stop; waiters then give up, so that stopping takes no 30 s."""

    def wait(self, job_id: str, seconds: float) -> None:
        """Returns when the job has ended or is gone, or when the time is over.

        Returns at once when `most_waiting` requests wait already: each holds a thread, and some must be left for other requests.

        Raises:
            LedgerUnavailable: Redis went away meanwhile.
        """
        place = self._places.take() if seconds > 0 else None
        if place is None:
            return
        with place:
            self.wait_in_place(job_id, seconds)

    def wait_in_place(self, job_id: str, seconds: float, given_up: Callable[[], bool] = lambda: False) -> None:
        """The same as `wait` for who has a place. Returns also soon after `given_up` says so."""
        with self._registered(job_id) as ended:
            deadline = time.monotonic() + seconds
            while not (self.stopping() or given_up()):
                status = self._ledger.status(job_id)
                remaining = deadline - time.monotonic()
                if status is None or status.ended or remaining <= 0 or ended.wait(min(CHECK_SECONDS, remaining)):
                    return

    def require_place(self) -> ExitStack:
        """A place among those who wait, for a request that must: it takes one before it submits its job.

        Raises:
            PlacesFull: `most_waiting` requests wait already.
        """
        return self._places.require()

    def require_stream(self) -> ExitStack:
        """A place for a request that follows its job. It is no waiter's: a stream lasts as long as its client likes.

        Raises:
            PlacesFull: `most_streams` requests follow a job already.
        """
        return self._streams.require()

    def ticks(self, job_id: str) -> Iterator[None]:
        """Comes at once, each `CHECK_SECONDS`, and as soon as the job ends; no more when the process is about to stop."""
        with self._registered(job_id) as ended:
            while not self.stopping():
                yield
                ended.wait(CHECK_SECONDS)
                ended.clear()  # before the caller looks

    @contextmanager
    def _registered(self, job_id: str) -> Iterator[threading.Event]:
        event = threading.Event()
        with self._lock:
            self._events[job_id].add(event)
            if self._thread is None:
                self._thread = threading.Thread(target=self._listen, name="ended-jobs", daemon=True)
                self._thread.start()
        try:
            yield event
        finally:
            with self._lock:
                self._events[job_id].discard(event)
                if not self._events[job_id]:
                    del self._events[job_id]

    def _listen(self) -> None:
        reachable = True
        while True:
            try:
                for job_id in self._ledger.ended_jobs():
                    reachable = True
                    if job_id is not None:
                        self._tell(job_id)
            except LedgerUnavailable as error:
                if reachable:
                    log.warning("not told of ended jobs for now: %s", error)
                reachable = False
            except Exception:
                log.exception("listening for ended jobs failed; trying again")
            time.sleep(RECONNECT_SECONDS)

    def _tell(self, job_id: str) -> None:
        with self._lock:
            for event in self._events.get(job_id, ()):
                event.set()
