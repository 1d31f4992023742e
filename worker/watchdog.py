"""Ends a process whose engine does not come back from a call within `HANG_SECONDS`. Loading the model is no such call.

A thread of the process looks at how long its oldest call goes on. A call that also holds the interpreter lets no thread run, so
the worker's parent looks at the same figures, a little later: they lie in memory that parent and child share.
"""

import mmap
import os
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from core import tracing
from core.errors import LedgerUnavailable
from core.ledger import ClaimedShard, Ledger
from worker.log import log

HUNG = 5
"""Exit code of a process whose engine hung."""

LOOKS = 10
"""Looks of the thread in `HANG_SECONDS`."""

LATE = 3
"""A look comes much too late after so many times the pause between two."""

GRACE = 1.2
"""The parent ends a child that could not end itself after so many times `HANG_SECONDS`."""

_RECORD = struct.Struct("=dI256s")
"""When the oldest call began (`time.monotonic`, 0: there is none), the process, its queue, and the suspect it has alone."""

_memory = mmap.mmap(-1, _RECORD.size)


class Calls:
    """The engine calls of this process that have not returned."""

    def __init__(self) -> None:
        self._begun: dict[object, float] = {}
        self._work = b""
        self._lock = threading.Lock()
        self._write()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Watched while the block runs."""
        call = object()
        with self._lock:
            self._begun[call] = time.monotonic()
            self._write()
        try:
            yield
        finally:
            with self._lock:
                del self._begun[call]
                self._write()

    def serve(self, queue: str, alone: ClaimedShard | None = None) -> None:
        """Which queue the process works for from now on (empty: none), and the shard that it has alone, if it has one alone."""
        name = "" if alone is None else f" {alone.job_id} {alone.span} {alone.attempt}"
        with self._lock:
            self._work = f"{queue}{name}".encode()
            self._write()

    def seconds(self) -> float:
        """How long the oldest call has been going on; 0 without one."""
        return running()[0]

    def _write(self) -> None:
        _RECORD.pack_into(_memory, 0, min(self._begun.values(), default=0.0), os.getpid(), self._work)


def running() -> tuple[float, int, str]:
    """How long the oldest engine call has been going on, in which process, and what for, as `Calls.serve` notes it."""
    begun, pid, work = _RECORD.unpack_from(_memory)
    return (time.monotonic() - begun if begun else 0.0), pid, work.rstrip(b"\0").decode()


class Looks:
    """Looks at the calls every `seconds`. A look that comes much too late tells that this process stood still (SIGSTOP, a frozen
    container), and its child with it: the calls under way have not had that time, so theirs counts from then on."""

    def __init__(self) -> None:
        self._last = self._since = 0.0

    def running(self, seconds: float) -> tuple[float, int, str]:
        """As `running`, but at most since this process stood still."""
        now = time.monotonic()
        if now - self._last > LATE * seconds:
            self._since = now
        self._last = now
        found, pid, work = running()
        return min(found, now - self._since), pid, work


def forget() -> None:
    """The process that made those calls has gone."""
    _memory[:] = bytes(_RECORD.size)


def start(hang_seconds: float, open_ledger: Callable[[], Ledger]) -> None:
    """End this process when its engine hangs."""

    def keep_looking() -> None:
        pause, looks = threading.Event(), Looks()
        while True:
            pause.wait(hang_seconds / LOOKS)
            seconds, _, work = looks.running(hang_seconds / LOOKS)
            if seconds > hang_seconds:
                try:
                    _tell(seconds, work, open_ledger)
                    tracing.stop("EngineHung")
                finally:
                    forget()  # else the parent would see a call that goes on
                    os._exit(HUNG)

    threading.Thread(target=keep_looking, name="watchdog", daemon=True).start()


_parents = Looks()


def end_hung_child(hang_seconds: float, open_ledger: Callable[[], Ledger]) -> None:
    """End the child if its engine hangs and it could not end itself. To be called at least `LOOKS` times in `hang_seconds`."""
    seconds, pid, work = _parents.running(hang_seconds / LOOKS)
    if pid not in (0, os.getpid()) and seconds > hang_seconds * GRACE:
        forget()
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return  # it was killed in the middle of a call
        _tell(seconds, work, open_ledger)


def _tell(seconds: float, work: str, open_ledger: Callable[[], Ledger]) -> None:
    queue, job_id, span, attempt = work.split() if " " in work else (work, "", "", "0")
    told = {"queue": queue, "job": job_id, "shard": span}
    log.critical("the engine did not come back for %.0f s (HANG_SECONDS), its process ends", seconds, extra=told)
    if queue:
        try:
            open_ledger().hung(queue, job_id, span, int(attempt))
        except LedgerUnavailable as error:
            log.warning("could not tell Redis; the lease will run out: %s", error)
