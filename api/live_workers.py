"""The live workers as of a moment ago, so that a request does not ask Redis for them each time."""

import time
from collections.abc import Callable

from core.ledger import Ledger, Worker
from core.models import Model


class LiveWorkers:
    """The ledger's live workers, read again after `fresh_seconds`.

    No lock: two threads that find the list stale both read it, which is cheaper than one waiting for the other's timeout.
    """

    def __init__(self, ledger: Ledger, *, fresh_seconds: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._fresh_seconds = fresh_seconds
        self._clock = clock
        self._read: tuple[float, tuple[Worker, ...]] | None = None

    def get(self) -> tuple[Worker, ...]:
        """The workers, by name. A worker that is loading its model counts: it will take what waits."""
        now = self._clock()
        if self._read is None or now - self._read[0] >= self._fresh_seconds:
            self._read = (now, tuple(self._ledger.workers()))
        return self._read[1]

    def of(self, model: Model) -> tuple[Worker, ...]:
        """Those that have this model, by name. Others in its queues were started when these had another one."""
        return tuple(
            worker for worker in self.get() if worker.model == model.name and not set(model.queues).isdisjoint(worker.queues)
        )

    def queues(self) -> frozenset[str]:
        """The queues that a live worker takes from."""
        return frozenset(queue for worker in self.get() for queue in worker.queues)
