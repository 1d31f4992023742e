"""A master, its replica and a sentinel, all real: the master dies under load, and the service goes on with the replica."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import redis

from core.ledger import Ledger, connect
from launcher.redis_server import find_binary
from tests.conftest import QUICK
from tests.integration.test_worker import TEXTS, assert_every_vector, ended, submit
from tests.processes import ROOT, Process, free_port, running_stack, wait_for

pytestmark = pytest.mark.integration

PASSWORD = "p/a@s;s,w:ord"
QUOTED = "p%2Fa%40s%3Bs%2Cw%3Aord"


@dataclass
class Watched:
    """A master with one replica, watched by one sentinel."""

    url: str
    master: Process
    replica: Process
    sentinel: redis.Redis
    started: list[Process]

    def master_port(self) -> int:
        return int(self.sentinel.execute_command("SENTINEL", "get-master-addr-by-name", "texts")[1])


def is_linked(replica: redis.Redis) -> bool:
    try:
        return replica.info("replication")["master_link_status"] == "up"  # type: ignore[index]
    except redis.RedisError:
        return False


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    started: list[Process] = []

    def start(name: str, port: int, *options: str, mode: str = "") -> Process:
        (tmp_path / name).mkdir()
        file = tmp_path / name / "server.conf"
        lines = [f"port {port}", "bind 127.0.0.1", f"dir {tmp_path / name}", *options]
        file.write_text("\n".join(lines))
        started.append(Process([find_binary(), str(file), *mode.split()], {}, tmp_path / f"{name}.log"))
        return started[-1]

    first, second, third = free_port(), free_port(), free_port()
    secret = f'"{PASSWORD}"'
    server = ("appendonly yes", f"requirepass {secret}", f"masterauth {secret}", "repl-diskless-sync-delay 0")
    try:
        master = start("master", first, *server)
        replica = start("replica", second, *server, f"replicaof 127.0.0.1 {first}")
        with redis.Redis(port=second, password=PASSWORD) as client:  # a sentinel looks for replicas at its start, then every 10 s
            wait_for(lambda: is_linked(client), what="the replica's link to its master")
        options = (f"auth-pass texts {secret}", "down-after-milliseconds texts 500", "failover-timeout texts 3000")
        watch = (f"sentinel monitor texts 127.0.0.1 {first} 1", *(f"sentinel {option}" for option in options))
        start("sentinel", third, *watch, mode="--sentinel")
        with redis.Redis(port=third, decode_responses=True) as sentinel:
            found = Watched(f"redis+sentinel://127.0.0.1:{third}/texts/1", master, replica, sentinel, started)

            def ready() -> bool:
                try:
                    (state,) = sentinel.sentinel_slaves("texts")
                except (redis.RedisError, ValueError):
                    return False
                return state["flags"] == "slave" and state["master-link-status"] == "ok"

            wait_for(ready, what="the sentinel's view of the replica")
            yield found
    finally:
        for process in reversed(started):
            process.kill_group()


def test_job_outlives_the_master_of_redis(watched: Watched, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(PASSWORD)
    url = watched.url.replace("://", f"://:{QUOTED}@")
    environ = QUICK | {"REDIS_URL": watched.url, "REDIS_PASSWORD_FILE": str(file)}
    with contextmanager(running_stack)(url, tmp_path, environ) as stack:
        api, worker = stack.api(), stack.worker(name="seen", FAKE_BATCH_SECONDS="0.1")
        ledger = Ledger(connect(url, timeout_seconds=5, retries=20), "vector-api:")
        submit(ledger, TEXTS)
        wait_for(lambda: ledger.finished("job"), what="the first shard")
        before = watched.master_port()
        watched.master.kill_group()
        wait_for(lambda: watched.master_port() != before, what="another master")
        assert ended(ledger, "job").counts.done == len(TEXTS)
        assert_every_vector(ledger, "job", TEXTS)
        job = httpx.post(f"{stack.base_url}/v1/jobs?wait=20", json={"inputs": ["a text"]}, timeout=30).json()
        assert job["status"] == "succeeded"
        assert worker.popen.poll() is None
        command = f"{sys.executable} -m celery -A worker inspect conf --timeout 9 -d seen@{socket.gethostname()}".split()
        shown = subprocess.run(
            command,
            cwd=ROOT,
            env=stack.environ | {"PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        assert "sentinel://" in shown
        for text in (shown, api.output(), worker.output()):
            assert PASSWORD not in text
            assert QUOTED not in text
        assert worker.stop() == 0
