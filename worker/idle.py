"""A GPU worker that has had nothing to do for long enough leaves, so that nobody pays for it (`GPU_IDLE_EXIT_SECONDS`)."""

import math
import os
import signal
import time
from collections.abc import Iterable
from typing import Any

from celery import bootsteps

from core.errors import LedgerUnavailable
from core.ledger import Ledger, QueueState
from core.routing import base_of
from worker import app, lifecycle, settings
from worker.log import log


class LeaveWhenIdle(bootsteps.StartStopStep):  # type: ignore[misc]
    """Ends a worker of a gpu queue as SIGTERM does, with exit code 0, when all its queues stayed empty.

    The time starts when the worker reports its model, and again whenever Redis cannot be asked: what is unknown is not idle.
    """

    requires = ("celery.worker.components:Timer",)

    def __init__(self, parent: Any, **_: Any) -> None:
        self._timer: Any = None
        self._seconds = settings.gpu_idle_exit_seconds or math.inf
        self._idle_since: float | None = None

    def include_if(self, parent: Any) -> bool:
        return settings.gpu_idle_exit_seconds is not None and "gpu" in map(base_of, app.amqp.queues.consume_from)

    def start(self, parent: Any) -> None:
        ledger = lifecycle.open_ledger(2.0, 0)
        self._timer = parent.timer.call_repeatedly(settings.wake_seconds, self._look, (ledger,))

    def stop(self, parent: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self, ledger: Ledger) -> None:
        if lifecycle.is_stopping():
            return
        try:
            idle = is_idle(ledger.queue_states(app.amqp.queues.consume_from), lifecycle.node_name())
        except LedgerUnavailable:
            idle = False
        if not idle:
            self._idle_since = None
            return
        now = time.monotonic()
        if self._idle_since is None:
            self._idle_since = now
        if now - self._idle_since >= self._seconds:
            log.info("leaving: nothing to do for %g s (GPU_IDLE_EXIT_SECONDS)", self._seconds)
            os.kill(os.getpid(), signal.SIGTERM)  # whatever comes in this very moment is finished or given back


def is_idle(states: Iterable[QueueState], node_name: str) -> bool:
    """Whether the worker has its model, and in its queues nothing waits and nothing runs, at any worker."""
    return all(
        not any(state.waiting.values())
        and not state.running
        and any(worker.name.split("/")[0] == node_name for worker in state.workers)
        for state in states
    )


app.steps["worker"].add(LeaveWhenIdle)
