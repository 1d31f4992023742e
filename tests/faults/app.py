"""A worker with the fake engine that waits, or dies, exactly where a test wants it.

    celery -A tests.faults.app worker -Q cpu

A text `HOLD file` is embedded when that file is there; meanwhile there is `file.held`. With `DIE_WITH_MESSAGE=file` the first
worker that takes a message of Celery's off its queue dies before anything tells that it has it, and leaves that file.
"""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from kombu.transport.redis import QoS

import worker.lifecycle
from tests.fakes import FakeEngine, app
from worker.engines import Tokens

__all__ = ["app"]


class HeldEngine(FakeEngine):
    def embed(self, batch: Sequence[Tokens]) -> np.ndarray:
        for item in batch:
            text = item.text  # type: ignore[attr-defined]
            if text.startswith("HOLD "):
                wait_for_file(Path(text.split()[1]))
        return super().embed(batch)


def wait_for_file(file: Path) -> None:
    file.with_suffix(".held").touch()
    while not file.exists():
        time.sleep(0.01)


def die_with_message(marker: Path) -> None:
    """Have the first worker die between BRPOP and the bookkeeping of what it has taken."""
    append = QoS.append

    def die(self: QoS, *args: Any) -> None:
        if marker.exists():
            return append(self, *args)
        marker.touch()
        return os.killpg(0, signal.SIGKILL)

    QoS.append = die


worker.lifecycle.load_engine = HeldEngine
if found := os.environ.get("DIE_WITH_MESSAGE"):
    die_with_message(Path(found))
