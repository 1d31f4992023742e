"""The shards a process holds."""

import threading
import time
from collections.abc import Iterable

from core.errors import LedgerUnavailable
from core.ledger import Ledger
from worker.log import log
from worker.work import Work

CHECK_SECONDS = 0.05
"""How often, at most, the worker asks between batches whether its shards were cancelled."""


class Leases:
    """Renewed by a thread while the process lives. A shard that is cancelled or went to another worker is marked lost."""

    def __init__(self, ledger: Ledger, worker: str, seconds: float) -> None:
        self._ledger = ledger
        self._worker = worker
        self._seconds = seconds
        self._held: dict[Work, str] = {}
        self._lock = threading.Lock()
        self._checked = 0.0
        threading.Thread(target=self._keep_renewing, name="leases", daemon=True).start()

    def hold(self, queue: str, works: Iterable[Work]) -> None:
        with self._lock:
            self._held |= dict.fromkeys(works, queue)

    def drop(self, works: Iterable[Work]) -> None:
        with self._lock:
            for work in works:
                self._held.pop(work, None)

    def drop_all(self) -> None:
        """Nothing is renewed that nobody works on."""
        with self._lock:
            self._held.clear()

    def check(self) -> None:
        """Renew now, unless that was just done."""
        if time.monotonic() - self._checked >= CHECK_SECONDS:
            self._renew()

    def _renew(self) -> None:
        with self._lock:
            held = dict(self._held)
        for queue in set(held.values()):
            works = [work for work, at in held.items() if at == queue]
            kept = self._ledger.extend(queue, self._worker, [work.shard for work in works], lease_seconds=self._seconds)
            for work, mine in zip(works, kept, strict=True):
                work.lost = work.lost or not mine
        self._checked = time.monotonic()

    def _keep_renewing(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(self._seconds / 3)
            try:
                self._renew()
            except LedgerUnavailable as error:
                log.warning("could not renew leases: %s", error)
