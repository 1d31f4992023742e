"""Each module has a Redis server of its own and the workers it strikes."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis
from celery import Celery

from core.config import Settings
from core.jobs import Job, JobOptions, Lane
from core.ledger import Ledger, NewJob, connect
from core.queues import create_celery, send_embed_pending
from core.sharding import Input, cut
from launcher.redis_server import RedisServer
from tests.integration.test_worker import MODEL, ended
from tests.processes import Process, Stack, wait_for

LEASE_SECONDS = 2
APP = "tests.faults.app"

NO_FSYNC = {"appendfsync": "no"}
"""What was written is in the file when the server is killed, also so; only a machine that fails asks for more."""


@dataclass
class Hold:
    """A file that a text waits for."""

    file: Path

    @property
    def text(self) -> str:
        return f"HOLD {self.file}"

    def wait_until_held(self) -> None:
        wait_for(self.file.with_suffix(".held").exists, what="a worker with the text")

    def let_go(self) -> None:
        self.file.touch()


@dataclass
class Fleet:
    """Processes around one Redis server, whose ledger is looked at from outside."""

    server: RedisServer
    stack: Stack
    ledger: Ledger
    redis: redis.Redis
    celery: Celery
    workers: dict[str, Process] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def start_workers(self, count: int, **environ: str) -> None:
        """So many more workers, which are at rest."""
        for _ in range(count):
            self.start_worker(wait=False, **environ)
        self.wait_for_rest()

    def start_worker(self, queues: str = "cpu", *, wait: bool = True, **environ: str) -> Process:
        """One more, whether or not there is work."""
        name = f"f{next(self._numbers)}"
        self.workers[name] = self.stack.worker(queues, app=APP, name=name, wait=wait, **environ)
        return self.workers[name]

    def living(self) -> dict[str, Process]:
        return {name: process for name, process in self.workers.items() if process.popen.poll() is None}

    def wait_for_rest(self) -> None:
        """Returns when every worker that lives has its model and nothing to do."""

        def at_rest() -> bool:
            reported = {worker.name.split("@")[0] for worker in self.ledger.workers()}
            return set(self.living()) <= reported and not self.redis.exists("vector-api:draining:cpu", "vector-api:leases:cpu")

        wait_for(at_rest, what="workers at rest")

    def submit(self, *texts: str, lane: Lane = Lane.INTERACTIVE) -> str:
        """A new job's id; workers are told, as the API does.

        Interactive, so that no worker claims it ahead while it holds another.
        """
        job_id = f"job{next(self._numbers)}"
        shards = list(cut(map(Input, texts), max_inputs=16, max_characters=10_000))
        job = NewJob(job_id, "default", "cpu", lane, MODEL, JobOptions(), {}, 600, len(texts), len(shards))
        if self.ledger.submit(job, shards, max_waiting_inputs=10**9)[1]:
            send_embed_pending(self.celery, "cpu")
        return job_id

    def ended(self, job_id: str, seconds: float = 30) -> Job:
        return ended(self.ledger, job_id, seconds)

    def at_work(self) -> set[str]:
        """Names of the workers that have claimed."""
        return {member.decode().split("@")[0] for member in self.redis.zrange("vector-api:draining:cpu", 0, -1)}

    def take(self, *texts: str) -> tuple[str, str]:
        """Submit a job of texts, the first of them held; returns its id and the name of the worker that took it."""
        before = self.at_work()
        job_id = self.submit(*texts)
        (name,) = wait_for(lambda: self.at_work() - before, what="a worker that takes the job")
        return job_id, name

    def waiting(self) -> int:
        return sum(map(int, self.redis.hvals("vector-api:waiting")))


@contextlib.contextmanager
def fleet_at(folder: Path, environ: dict[str, str], *, url: str = "", server: RedisServer) -> Iterator[Fleet]:
    """A fleet without workers around a server, which its processes reach at `url`."""
    settings = {"LEASE_SECONDS": str(LEASE_SECONDS), "HEARTBEAT_SECONDS": "0.5"} | environ
    stack = Stack(url or server.url, folder, settings)
    try:
        with connect(server.url, timeout_seconds=5, retries=2) as client:
            yield Fleet(server, stack, Ledger(client, "vector-api:"), client, create_celery(Settings.from_env(stack.environ)))
    finally:
        stack.close()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Workers look for work as often as by default."""
    folder = tmp_path_factory.mktemp("fleet")
    with RedisServer(folder / "redis", NO_FSYNC) as server, fleet_at(folder, {}, server=server) as found:
        yield found


@pytest.fixture
def hold(tmp_path: Path) -> Callable[[], Hold]:
    """Makes texts that wait."""
    numbers = itertools.count()
    return lambda: Hold(tmp_path / f"hold{next(numbers)}")
