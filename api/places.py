"""So many requests of a kind at a time: those that hold a thread or memory for as long as their client likes."""

import threading
from contextlib import ExitStack

from core.errors import PlacesFull

RETRY_SECONDS = 1


class Places:
    """`most` places for `what`, such as "downloads"."""

    def __init__(self, most: int, what: str) -> None:
        self._free = threading.BoundedSemaphore(most)
        self._message = f"{most} {what} at a time are served by one process; try again in {RETRY_SECONDS} s"

    def take(self) -> ExitStack | None:
        """A place, which is given back by closing it; None when there is none."""
        if not self._free.acquire(blocking=False):
            return None
        place = ExitStack()
        place.callback(self._free.release)
        return place

    def require(self) -> ExitStack:
        """A place.

        Raises:
            PlacesFull: there is none.
        """
        place = self.take()
        if place is None:
            raise PlacesFull(self._message, retry_after_seconds=RETRY_SECONDS)
        return place
