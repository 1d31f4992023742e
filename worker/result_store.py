"""What a worker does about the result store: sit out its failures, and remove what ended jobs have left there."""

import threading
import time
from collections.abc import Callable, Sequence

import redis

from core.errors import LedgerUnavailable, ResultStoreUnavailable
from core.ledger import Committed, StoringLedger
from core.ledger.ledger import Facts
from core.result_store import ResultStore
from worker.log import log

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 30.0

GARBAGE_AT_ONCE = 100
GARBAGE_RETRY_SECONDS = 60.0
"""When to try again to remove what could not be removed; longer than removing takes, so that workers share the work."""


class Outage:
    """Whether the store has failed. No work is taken then: it would be computed for nothing."""

    def __init__(self, store: ResultStore) -> None:
        self._store = store
        self._pause_seconds = 0.0
        self.began = False

    def begin(self, error: ResultStoreUnavailable) -> None:
        self.began = True
        log.error("results cannot be stored; the shards are given back, and no work is taken until they can: %s", error)

    def sit_out(self, stopping: Callable[[], bool]) -> bool:
        """Returns whether work can be taken. While the store fails: after a pause that grows, and one more try."""
        if not self.began:
            return True
        self._pause_seconds = min(LONGEST_PAUSE_SECONDS, max(FIRST_PAUSE_SECONDS, 2 * self._pause_seconds))
        deadline = time.monotonic() + self._pause_seconds
        while time.monotonic() < deadline:
            if stopping():
                return False
            time.sleep(0.1)
        try:
            self._store.probe()
        except ResultStoreUnavailable as error:
            log.error("results still cannot be stored; trying again soon: %s", error)
            return False
        log.warning("results can be stored again")
        self.began, self._pause_seconds = False, 0.0
        return True


class WorkerLedger(StoringLedger):
    """A ledger for a worker that goes on when the store fails: the shards are given back, and no attempt is counted."""

    def __init__(self, client: redis.Redis, prefix: str, store: ResultStore, *, min_bytes: int) -> None:
        super().__init__(client, prefix, store, min_bytes=min_bytes)
        self.outage = Outage(store)

    def _store(self, queue: str, finished: Sequence[Committed], facts: Facts) -> list[bool]:
        try:
            if not self.outage.began:  # else what comes next would wait as long, only to fail as well
                return super()._store(queue, finished, facts)
        except ResultStoreUnavailable as error:
            self.outage.begin(error)
        self.release(queue, "", [item.shard for item in finished])  # in nobody's name: the worker is still at work
        return [False] * len(finished)


class Collector:
    """Removes the objects of deleted and expired jobs, in a thread of its own."""

    def __init__(self, ledger: StoringLedger, pause_seconds: float) -> None:
        self._ledger = ledger
        self._pause_seconds = pause_seconds

    def start(self) -> None:
        threading.Thread(target=self._keep_collecting, name="garbage", daemon=True).start()

    def collect(self) -> int:
        """Remove what is due. Returns for how many jobs; one whose objects cannot be removed now comes again."""
        due = self._ledger.garbage(limit=GARBAGE_AT_ONCE, retry_seconds=GARBAGE_RETRY_SECONDS)
        for member in due:
            self._ledger.store.remove_job(member.partition("/")[0])
            self._ledger.forget(member)
        return len(due)

    def _keep_collecting(self) -> None:
        pause = threading.Event()
        while True:
            found = 0
            try:
                found = self.collect()
            except ResultStoreUnavailable as error:
                log.warning("objects of ended jobs cannot be removed; trying again in a minute: %s", error)
            except LedgerUnavailable as error:
                log.debug("could not look for objects to remove: %s", error)
            if found < GARBAGE_AT_ONCE:
                pause.wait(self._pause_seconds)
