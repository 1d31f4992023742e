"""The service on one machine: a Redis server, the API and one worker, started in order and stopped in reverse.

Why not honcho, which runs processes just so? It stops them by a SIGTERM to the whole process group. That ends a Celery worker's
child in the middle of its batch, where the worker's parent alone would have let it finish (tried with honcho 2.0.0 and
Celery 5.7.0: `WorkerLostError: Worker exited prematurely: signal 15`). And when it is killed itself, its processes live on.
"""

import collections
import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import urlsplit

import redis

from core.config import Settings
from core.errors import LedgerUnavailable, VectorApiError
from core.ledger import Ledger, connect
from launcher.data_folder import DataFolder
from launcher.interrupts import Interrupts
from launcher.keeper import GRACE_SECONDS, Keeper
from launcher.redis_server import RedisNotStarted, RedisServer

ROOT = Path(__file__).parent.parent
CHECK_SECONDS = 0.1
LAST_LINES = 30

CANNOT_START = "cannot start: "
"""How a worker begins the line in which it says why it ends."""

Show = Callable[[str, str], None]
"""Takes a service's name and a line of its output."""


class PortInUse(VectorApiError):
    code = "port_in_use"


class ServiceStopped(VectorApiError):
    """The service `name` ended by itself. `last_lines` is the end of its output."""

    code = "service_stopped"

    def __init__(self, name: str, message: str, last_lines: list[str]) -> None:
        super().__init__(message)
        self.name = name
        self.last_lines = last_lines


class NotReady(VectorApiError):
    code = "not_ready"


class Service:
    """One process in a group of its own, so that Ctrl-C reaches the launcher alone; each line of its output goes to `show`."""

    def __init__(self, name: str, command: list[str], environ: Mapping[str, str], show: Show) -> None:
        self.name = name
        self.last_lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        self._show = show
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,), name=f"{name}-output", daemon=True)
        self._reader.start()

    def ask_to_stop(self) -> None:
        if self.process.poll() is None:
            # To the parent alone: Celery's and gunicorn's parents end their children when these have finished.
            self.process.send_signal(signal.SIGTERM)

    def wait(self, deadline: float) -> None:
        """Returns when the process and its children have ended; after `deadline` (of the monotonic clock) they are killed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=max(0.0, deadline - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        """SIGKILL the process, and whatever of its group is left."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(timeout=5)

    def _read(self, output: IO[bytes]) -> None:
        with output:
            for raw in output:
                line = raw.decode(errors="replace").rstrip("\r\n")
                self.last_lines.append(line)
                self._show(self.name, line)


class Stack:
    """The running service; use it in a `with` block.

    Args:
        environ: the environment; its REDIS_URL, where set, is used instead of a server of our own.
        data: where that server keeps its data.
        port: of the API.
        queues: what the worker works for, such as `cpu` or `gpu,cpu`.
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        data: Path,
        *,
        port: int,
        queues: str,
        show: Show,
        interrupts: Interrupts,
    ) -> None:
        self.url = f"http://{_reachable(settings.api_host)}:{port}"
        self.queues = queues
        self._settings = settings
        self._environ = dict(environ)
        self._port = port
        self._data = DataFolder(data)
        self._show = show
        self._interrupts = interrupts
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy is for the world outside
        self._keeper: Keeper | None = None
        self._redis: RedisServer | None = None
        self._services: list[Service] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _start(self) -> None:
        """Returns when all processes are started; they may not be ready.

        Raises:
            RedisNotStarted, DataFolderInUse: the message says what to do.
        """
        self._keeper = Keeper()
        if self._environ.get("REDIS_URL", "").strip():
            check_redis(self._settings.redis_url)
        else:
            lock_file = self._data.take()
            with self._interrupts.held():
                self._redis = RedisServer(self._data.path / "redis", keeper=self._keeper, lock_file=lock_file)
                self._redis.start()
            self._environ["REDIS_URL"] = self._redis.url
        self._environ |= {"API_PORT": str(self._port), "PYTHONUNBUFFERED": "1"}
        self._launch("api", [sys.executable, "-m", "api"])
        self._launch("worker", worker_command(self.queues, self._settings.log_level))

    def _launch(self, name: str, command: list[str]) -> None:
        with self._interrupts.held():
            service = Service(name, command, self._environ, self._show)
            self._services.append(service)
            assert self._keeper is not None
            self._keeper.watch(service.process.pid)

    @property
    def own_redis_url(self) -> str | None:
        """Where the Redis server is that we started."""
        return None if self._redis is None else self._redis.url

    @property
    def services(self) -> tuple[Service, ...]:
        """The processes besides Redis, in the order of their start."""
        return tuple(self._services)

    def check(self) -> None:
        """Raises ServiceStopped when one of the processes has ended."""
        if self._redis is not None and self._redis.process is not None and (code := self._redis.process.poll()) is not None:
            log = self._redis.folder / "server.log"
            lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
            raise ServiceStopped("redis", f"the Redis server stopped ({_ending(code)})", lines)
        for service in self._services:
            if (code := service.process.poll()) is not None:
                service.kill()
                lines = list(service.last_lines)
                reason = next((line.partition(CANNOT_START)[2] for line in map(_message, lines) if CANNOT_START in line), "")
                raise ServiceStopped(
                    service.name,
                    f"the {service.name} cannot start: {reason}" if reason else f"the {service.name} stopped ({_ending(code)})",
                    lines,
                )

    def wait_for_api(self, seconds: float = math.inf, tick: Callable[[], None] = lambda: None) -> None:
        """Returns when the API answers; calls `tick` now and then.

        Raises:
            ServiceStopped: one of the processes ended.
            NotReady: it does not answer within `seconds`.
        """
        self._wait(lambda: self._get("/healthz"), seconds, tick, "the API does not answer")

    def wait_for_worker(self, seconds: float = math.inf, tick: Callable[[], None] = lambda: None) -> None:
        """Returns when a worker has loaded its model and works for the first of our queues. Raises what `wait_for_api` raises."""
        self._wait(self._has_worker, seconds, tick, "the worker is not ready")

    def _has_worker(self) -> bool:
        """Asks the ledger, not the API, which may ask for a key."""
        try:
            with connect(self.own_redis_url or self._settings.redis_url, timeout_seconds=5, retries=0) as client:
                workers = Ledger(client, self._settings.redis_prefix).workers()
        except LedgerUnavailable:
            return False
        return any(self.queues.split(",")[0] in worker.queues for worker in workers)

    def _wait(self, condition: Callable[[], object], seconds: float, tick: Callable[[], None], problem: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                raise NotReady(f"{problem} after {seconds:.0f} s")
            tick()
            time.sleep(CHECK_SECONDS)

    def _get(self, path: str) -> dict[str, Any]:
        """The JSON of an answer with status 200; empty while there is none."""
        try:
            with self._opener.open(self.url + path, timeout=5) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except (OSError, ValueError):
            return {}

    def stop(self) -> None:
        """Stop the worker and the API, then Redis. A KeyboardInterrupt meanwhile kills what still runs."""
        deadline = time.monotonic() + GRACE_SECONDS
        try:
            for service in reversed(self._services):
                service.ask_to_stop()
            for service in reversed(self._services):
                service.wait(deadline)
        except KeyboardInterrupt:
            pass
        finally:
            with self._interrupts.held():
                self._stop_now()

    def _stop_now(self) -> None:
        while self._services:
            service = self._services.pop()
            service.kill()
            if self._keeper is not None:
                self._keeper.forget(service.process.pid)
        if self._redis is not None:
            self._redis.close()
            self._redis = None
        self._data.release()
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None


def worker_command(queues: str, log_level: str, platform: str = sys.platform) -> list[str]:
    """The command of a worker for a comma-separated list of queues."""
    name = f"{queues.replace(',', '-')}@%h"
    command = [sys.executable, "-m", "celery", "-A", "worker", "worker", "-Q", queues, "-n", name]
    command += ["--without-mingle", "--without-gossip", "--loglevel", log_level]
    # Metal does not survive a fork.
    return command + (["-P", "threads", "-c", "1"] if platform == "darwin" else [])


def _message(line: str) -> str:
    """What a line of a service's log says."""
    try:
        return str(json.loads(line)["message"]).partition("\n")[0]
    except (ValueError, TypeError, KeyError):
        return line


def check_redis(url: str) -> None:
    """Raises RedisNotStarted when no server answers at REDIS_URL."""
    try:
        with connect(url, timeout_seconds=3, retries=1) as client:
            client.ping()
    except (redis.RedisError, ValueError) as error:
        reason = str(error).rstrip(".")
        parts = urlsplit(url)  # without the password
        place = f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
        raise RedisNotStarted(
            f"REDIS_URL is set, but Redis does not answer at {place} ({reason}). Start that server, or unset "
            "REDIS_URL: then one is started here",
            param="REDIS_URL",
        ) from None


def check_port(host: str, port: int) -> None:
    """Raises PortInUse when the API could not listen there."""
    try:
        _listen(host, port).close()
    except OSError as error:
        raise PortInUse(
            f"the API cannot listen on {host}:{port} ({_reason(error)}). API_PORT chooses another port, API_HOST another "
            f"address, for example: API_PORT={port % 65535 + 1} make run",
            param="API_PORT",
        ) from None


def free_port(host: str) -> int:
    """A port that nobody listens on. Raises PortInUse when `host` is no address of this machine."""
    try:
        with _listen(host, 0) as listener:
            return int(listener.getsockname()[1])
    except OSError as error:
        raise PortInUse(f"the API cannot listen on API_HOST={host} ({_reason(error)})", param="API_HOST") from None


def _listen(host: str, port: int) -> socket.socket:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family)


def _reason(error: OSError) -> str:
    """What is wrong, without what Python adds to it."""
    if isinstance(error, socket.gaierror) or error.errno is None:
        return str(error.strerror or error)
    return os.strerror(error.errno)


def _reachable(host: str) -> str:
    """Where to reach an API that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
