"""Resident memory of processes over time."""

import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import psutil

from launcher.stack import Stack


def roles(stack: Stack) -> dict[str, psutil.Process]:
    """The processes of a running service by what they do; of a parent and its child the one that works is named without more."""
    parents = {service.name: psutil.Process(service.process.pid) for service in stack.services}
    found = {}
    for name, parent in parents.items():
        below = parent.children(recursive=True)
        if below:
            found |= {name: max(below, key=lambda process: process.memory_info().rss), f"{name} parent": parent}
        else:
            found[name] = parent
    servers = [process for process in psutil.Process().children() if process.name().endswith("-server")]
    return found | ({"redis": servers[0]} if servers else {})


class Sampler:
    """Bytes in RAM of each process, taken by a thread again and again while the `with` block runs.

    A process that ends meanwhile makes the block's end raise psutil.NoSuchProcess: its memory was never measured to the end.
    """

    def __init__(self, processes: Mapping[str, psutil.Process], seconds: float = 0.25) -> None:
        self._processes = processes
        self._seconds = seconds
        self._stop = threading.Event()
        self._gone: psutil.NoSuchProcess | None = None
        self._thread = threading.Thread(target=self._run, name="memory")
        self.samples: list[tuple[float, dict[str, int]]] = []
        """When, by the monotonic clock, and bytes by name."""

    def sample(self) -> dict[str, int]:
        """Bytes in RAM by name, now."""
        return {name: process.memory_info().rss for name, process in self._processes.items()}

    def peaks(self) -> dict[str, int]:
        """The most bytes seen, by name."""
        return {name: max(found[name] for _, found in self.samples) for name in self._processes}

    def _run(self) -> None:
        try:
            while True:
                self.samples.append((time.monotonic(), self.sample()))
                if self._stop.wait(self._seconds):
                    return
        except psutil.NoSuchProcess as error:
            self._gone = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        if self._gone is not None and error is None:
            raise self._gone
