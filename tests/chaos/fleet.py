"""The processes of a run: Redis with its file, the API and two workers. Each can be killed and comes back."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from launcher.redis_server import RedisServer
from tests.processes import Process, free_port

SETTINGS = {
    "LEASE_SECONDS": "2",
    "WAKE_SECONDS": "0.5",
    "HEARTBEAT_SECONDS": "0.5",
    "DRAIN_SECONDS": "3",
    "FAKE_BATCH_SECONDS": "0.005",
    "SHARD_INPUTS": "64",
}
"""Short times, so that a run of minutes sees much."""

WORKERS = 2
FREEZE_SECONDS = 3.0
"""How long a stopped worker sleeps: longer than its lease."""


class Fleet:
    def __init__(self, folder: Path, app: str) -> None:
        self.folder = folder
        self._app = app
        self.redis = RedisServer(folder / "redis")
        self.port = free_port()
        self.processes: dict[str, Process] = {}
        self._thawing: list[subprocess.Popen[bytes]] = []
        self.lock = threading.Lock()
        """Held while something is started or struck."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> Any:
        import redis

        return redis.Redis.from_url(self.redis.url, socket_timeout=5)

    def __enter__(self) -> Self:
        self.redis.start()
        self.keep_running()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.kill_group()
        for thawing in self._thawing:
            thawing.kill()
            thawing.wait(timeout=30)
        self.redis.close()

    def keep_running(self) -> None:
        """Start what is not there, as a supervisor would."""
        if self.redis.process is None or self.redis.process.poll() is not None:
            self.redis.stop()
            self.redis.start()
        for name in ["api", *(f"w{n}" for n in range(WORKERS))]:
            process = self.processes.get(name)
            if process is None or process.popen.poll() is not None:
                if process is not None:
                    process.kill_group()
                self.processes[name] = self._start(name)

    def _start(self, name: str) -> Process:
        celery = [sys.executable, "-m", "celery", "-A", self._app, "worker", "-Q", "cpu", "-n", f"{name}@%h"]
        command = (
            [sys.executable, "-m", "api"]
            if name == "api"
            else [*celery, "--without-mingle", "--without-gossip", "--loglevel", "ERROR"]
        )
        environ = SETTINGS | {"REDIS_URL": self.redis.url, "API_PORT": str(self.port), "LOG_LEVEL": "WARNING"}
        environ["CACHE_DIR"] = str(self.folder)  # the real model is converted once
        return Process(command, environ, self.folder / f"{name}.log")

    # What can happen to them ------------------------------------------------------------------------------------------

    def faults(self) -> dict[str, tuple[int, Callable[[str], None]]]:
        """Name, weight and deed. Each takes the name of a worker, which most use."""
        return {
            "worker group SIGKILL": (6, lambda worker: self.processes[worker].kill_group()),
            "worker child SIGKILL": (5, lambda worker: self._signal_child(worker, signal.SIGKILL)),
            "worker parent SIGKILL": (3, lambda worker: self._signal(worker, signal.SIGKILL)),
            "worker SIGTERM": (3, lambda worker: self._signal(worker, signal.SIGTERM)),
            "worker SIGQUIT": (1, lambda worker: self._signal(worker, signal.SIGQUIT)),
            "worker child frozen past its lease": (3, self._freeze),
            "API SIGKILL": (3, lambda _: self.processes["api"].kill_group()),
            "API SIGTERM": (1, lambda _: self._signal("api", signal.SIGTERM)),
            "Redis SIGKILL": (2, lambda _: self.redis.stop(signal.SIGKILL)),
            "Redis connections cut": (2, lambda _: self._redis("CLIENT", "KILL", "TYPE", "normal")),
            "Celery's messages deleted": (2, lambda _: self._redis("DEL", "vector-api:celery:cpu")),
        }

    def _signal(self, name: str, number: int) -> None:
        process = self.processes[name]
        if process.popen.poll() is None:
            process.signal(number)

    def _signal_child(self, worker: str, number: int) -> None:
        for child in self.processes[worker].children():
            try:
                os.kill(child, number)
            except ProcessLookupError:
                continue

    def _freeze(self, worker: str) -> None:
        """Stop a worker's child and wake it when others have taken its work."""
        children = self.processes[worker].children()
        self._signal_child(worker, signal.SIGSTOP)
        for child in children:
            self._thawing.append(subprocess.Popen(["sh", "-c", f"sleep {FREEZE_SECONDS}; kill -CONT {child} 2>/dev/null"]))

    def _redis(self, *command: str) -> None:
        self.client.execute_command(*command)
