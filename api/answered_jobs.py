"""Remove the jobs of requests that have their answer, without making anybody wait for it."""

import logging
import queue
import threading
import time

from core.ledger import Ledger

log = logging.getLogger(__name__)

GATHER_SECONDS = 0.2
MOST_AT_ONCE = 100
"""Jobs in one call of Redis, which answers nobody else meanwhile."""


class AnsweredJobs:
    """Jobs on their way out, removed by one thread that starts with the first.

    Redis waits for its disk with every write, and whoever writes at the same time waits as well: so what comes within a moment is
    removed together. What cannot be removed is logged and left to its short lifetime.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._jobs: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def remove(self, job_id: str, tenant: str) -> None:
        """Have a job removed, soon. Returns at once and never fails."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="answered-jobs", daemon=True)
                self._thread.start()
        self._jobs.put((job_id, tenant))

    def _run(self) -> None:
        while True:
            jobs = [self._jobs.get()]
            time.sleep(GATHER_SECONDS)
            while not self._jobs.empty():
                jobs.append(self._jobs.get())
            for first in range(0, len(jobs), MOST_AT_ONCE):
                self._drop(jobs[first : first + MOST_AT_ONCE])

    def _drop(self, jobs: list[tuple[str, str]]) -> None:
        try:
            self._ledger.drop(jobs)
        except Exception as error:
            log.warning("%d answered jobs stay until they expire (%s: %s)", len(jobs), type(error).__name__, error)
