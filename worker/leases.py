"""The shards a process holds."""

import threading
import time
from collections.abc import Iterable, Sequence

from core.errors import LedgerUnavailable
from core.ledger import Ledger
from worker.log import log
from worker.work import Work

LOOK_SECONDS = 0.02
"""How often, at most, the worker looks between batches at what goes on in the ledger."""


class Leases:
    """Renewed by a thread while the process lives. A shard that is cancelled or went to another worker is marked lost.

    What the process gave up because Redis was out of reach is given back as soon as it is in reach: nothing is held against it.
    """

    def __init__(self, ledger: Ledger, worker: str, seconds: float) -> None:
        self._ledger = ledger
        self._worker = worker
        self._seconds = seconds
        self._held: dict[Work, str] = {}
        self._abandoned: dict[Work, str] = {}
        self._lock = threading.Lock()
        self._looked = 0.0
        threading.Thread(target=self._keep_renewing, name="leases", daemon=True).start()

    def hold(self, queue: str, works: Iterable[Work]) -> None:
        with self._lock:
            self._held |= dict.fromkeys(works, queue)
        self._looked = time.monotonic()  # what was just claimed is ours

    def drop(self, works: Iterable[Work], error: BaseException | None = None) -> None:
        """Renew these no more: nothing is left to do, or an error ended it. If that was Redis they are given back later."""
        with self._lock:
            for work in works:
                queue = self._held.pop(work, None)
                if queue is not None and isinstance(error, LedgerUnavailable):
                    self._abandoned[work] = queue

    def drop_all(self) -> None:
        """Nothing is renewed that nobody works on."""
        with self._lock:
            self._held.clear()

    def look(self, queue: str) -> bool:
        """Mark what was lost. Returns whether interactive work waits in the queue; no, when this was asked just before."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return False
        works = self._held_of(queue)
        interactive, kept = self._ledger.look(queue, [work.shard for work in works])
        _mark_lost(works, kept)
        self._looked = time.monotonic()
        if not all(kept):
            self._extend(queue)
        return interactive

    def _held_of(self, queue: str) -> list[Work]:
        with self._lock:
            return [work for work, at in self._held.items() if at == queue]

    def _renew(self) -> None:
        with self._lock:
            queues = set(self._held.values())
            abandoned = dict(self._abandoned)
        for work, queue in abandoned.items():
            self._ledger.release(queue, "", [work.shard])  # in nobody's name: the worker may be at work again
            self._abandoned.pop(work)
        for queue in queues:
            self._extend(queue)

    def _extend(self, queue: str) -> None:
        """Renew the leases. This also takes back deaths that are held against shards which this process lost and survived."""
        works = self._held_of(queue)
        shards = [work.shard for work in works]
        _mark_lost(works, self._ledger.extend(queue, self._worker, shards, lease_seconds=self._seconds))

    def _keep_renewing(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(self._seconds / 3)
            try:
                self._renew()
            except LedgerUnavailable as error:
                log.warning("could not renew leases: %s", error)


def _mark_lost(works: Sequence[Work], kept: Sequence[bool]) -> None:
    for work, mine in zip(works, kept, strict=True):
        work.lost = work.lost or not mine
