"""Real processes for tests: the API under gunicorn and Celery workers, each started, watched and killed for real."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import redis

ROOT = Path(__file__).parent.parent
T = TypeVar("T")


def wait_for(condition: Callable[[], T], *, seconds: float = 30, what: str = "the condition") -> T:
    """What `condition` returns, as soon as it is true; fails after a deadline."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def redis_client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url)


class Process:
    """A command in a process group of its own, its output in a file."""

    def __init__(self, command: list[str], environ: dict[str, str], log: Path) -> None:
        self.log = log
        # Of the caller's environment only what no setting of ours can hide in; what a killed process leaves goes with the test.
        kept = {
            name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG") or name.startswith("OPENBLAS")
        }
        kept |= {"HF_HUB_OFFLINE": "1", "TMPDIR": str(log.parent)}
        with log.open("ab") as out:
            self.popen = subprocess.Popen(command, cwd=ROOT, env=kept | environ, stdout=out, stderr=out, start_new_session=True)

    @property
    def pid(self) -> int:
        return self.popen.pid

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def lines(self) -> list[dict[str, Any]]:
        """The lines of its log, each an object of JSON; the last one may not be whole yet."""
        return [json.loads(line) for line in self.output().split("\n")[:-1]]

    def children(self) -> list[int]:
        """Process ids of the direct children (the pool's processes of a worker)."""
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.pid)], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill_group(self) -> None:
        """SIGKILL the process and everything it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.popen.wait(timeout=30)

    def stop(self, seconds: float = 60) -> int:
        """SIGTERM; the exit code."""
        if self.popen.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            return self.popen.wait(timeout=seconds)
        finally:
            self.kill_group()


class Stack:
    """Processes around one Redis server. `environ` are the settings all of them share."""

    def __init__(self, redis_url: str, folder: Path, environ: dict[str, str]) -> None:
        self.redis_url = redis_url
        self.folder = folder
        self.environ = {"REDIS_URL": redis_url, "LOG_LEVEL": "INFO"} | environ
        self.started: list[Process] = []
        self.base_url = ""

    def _start(self, name: str, command: list[str], environ: dict[str, str]) -> Process:
        process = Process(command, self.environ | environ, self.folder / f"{name}-{len(self.started)}.log")
        self.started.append(process)
        return process

    def api(self, *, module: str = "api", **environ: str) -> Process:
        """An API that answers, at `base_url`."""
        port = free_port()
        process = self._start("api", [sys.executable, "-m", module], {"API_PORT": str(port)} | environ)
        self.base_url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            assert process.popen.poll() is None, process.output()
            try:
                return httpx.get(f"{self.base_url}/healthz").status_code == 200
            except httpx.TransportError:
                return False

        wait_for(answers, what="the API's answer")
        return process

    def worker(
        self, queues: str = "cpu", *, app: str = "tests.fakes", name: str = "", wait: bool = True, **environ: str
    ) -> Process:
        """A Celery worker; returns when it has reported itself to the ledger. `app="worker"` is the one with the real model."""
        node = name or f"w{len(self.started)}"
        command = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            app,
            "worker",
            "-Q",
            queues,
            "-n",
            f"{node}@%h",
            "--without-mingle",
            "--without-gossip",
        ]
        process = self._start("worker", command, environ)
        if wait:
            wait_for(lambda: self.reported(node, process), seconds=90, what=f"worker {node}'s report")
        return process

    def reported(self, node: str, process: Process) -> bool:
        from core.ledger import Ledger, connect

        assert process.popen.poll() is None, process.output()
        ledger = Ledger(connect(self.redis_url, timeout_seconds=2, retries=2), "vector-api:")
        return any(worker.name.startswith(f"{node}@") for worker in ledger.workers())

    def close(self) -> None:
        for process in reversed(self.started):
            process.kill_group()


def running_stack(redis_url: str, folder: Path, environ: dict[str, str]) -> Iterator[Stack]:
    stack = Stack(redis_url, folder, environ)
    try:
        yield stack
    finally:
        stack.close()
