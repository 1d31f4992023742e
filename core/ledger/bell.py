"""Hear at once that work waits in a queue."""

import time
from types import TracebackType
from typing import Any, Self

import redis

CONFIRMED_SECONDS = 1.0


class Bell:
    """A channel that scripts ring when work waits. They count who listens, so a worker listens only while it has no work.

    The connection is kept: to make a new one each time takes longer than all the rest. Not for several threads.
    """

    def __init__(self, client: redis.Redis, channel: str) -> None:
        self._channel = channel
        self._pubsub: Any = client.pubsub()  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        """Listen. Whoever rings after this is heard."""
        self._pubsub.subscribe(self._channel)
        self._hear("subscribe", CONFIRMED_SECONDS)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._pubsub.unsubscribe(self._channel)
        else:
            self._pubsub.close()

    def rings(self, seconds: float) -> bool:
        """Whether it rings within so many seconds."""
        return self._hear("message", seconds)

    def _hear(self, kind: str, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while (remaining := end - time.monotonic()) > 0:
            message = self._pubsub.get_message(timeout=remaining)
            if message is not None and message["type"] == kind:
                return True
        return False
