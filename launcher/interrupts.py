"""SIGINT, SIGTERM and SIGHUP as KeyboardInterrupt, at a moment that suits."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """From `install` on, each of the signals raises KeyboardInterrupt in the main thread.

    Not so in a `held` block: there it is raised at the block's end, so that no process is started and then forgotten.
    """

    def __init__(self) -> None:
        self._held = False
        self._came = False

    def install(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._take)

    @contextmanager
    def held(self) -> Iterator[None]:
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._came:
            self._came = False
            raise KeyboardInterrupt

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._held:
            self._came = True
        else:
            raise KeyboardInterrupt
