"""Send `embed_pending` without making a request wait for the broker."""

import logging
import queue
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class Wakes:
    """Messages on their way, sent by one thread that starts with the first.

    A message that cannot be sent is logged and dropped: the workers' timers find the work anyway. A queue that already has a
    message on its way gets no second one, so nothing piles up behind a broker that hangs.
    """

    def __init__(self, send: Callable[[str], None]) -> None:
        self._send = send
        self._waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._pending: set[str] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def send(self, name: str) -> None:
        """Wake a worker of the queue, soon. Returns at once and never fails."""
        with self._lock:
            if name in self._pending:
                return
            self._pending.add(name)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="wakes", daemon=True)
                self._thread.start()
        self._waiting.put(name)

    def _run(self) -> None:
        while True:
            name = self._waiting.get()
            with self._lock:
                self._pending.discard(name)  # before sending: work that is submitted from now on asks for its own
            try:
                self._send(name)
            except Exception as error:
                log.warning("no message for queue %s (%s: %s); its workers look by themselves", name, type(error).__name__, error)
