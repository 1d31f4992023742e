"""What the compose file relies on, tried without containers: its Redis with a password, the worker's health check, the doctor."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis
import yaml

from launcher.redis_server import RedisServer, find_binary
from tests.conftest import QUICK
from tests.processes import ROOT, Process, Stack, free_port, running_stack, wait_for

pytestmark = pytest.mark.integration

PASSWORD = "p/a@s:s#w%20ö"


@pytest.fixture
def closed_redis(tmp_path: Path) -> Iterator[tuple[str, Path, Process]]:
    """The server of docker-compose.yml, as it starts it, with its URL and the file of its password."""
    port, data, password = free_port(), tmp_path / "data", tmp_path / "password"
    data.mkdir()
    password.write_text(f"{PASSWORD}\n", encoding="utf-8")
    command = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]["redis"]["command"]
    script = command[-1].replace("$$", "$").replace("/run/secrets/redis_password", str(password)).replace("/data", str(data))
    script = script.replace(" <<END", f" --bind 127.0.0.1 --port {port} <<END")
    path = f"{Path(find_binary()).parent}:{os.environ['PATH']}"
    server = Process([*command[:-1], script], {"PATH": path, "MAXMEMORY": "100mb"}, tmp_path / "redis.log")
    try:
        wait_for(lambda: "eady to accept connections" in server.output(), what="the server's start")
        yield f"redis://127.0.0.1:{port}/0", password, server
    finally:
        server.kill_group()


def doctor(**environ: str) -> tuple[int, str]:
    """Exit code and output."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME")} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "doctor"],
        cwd=ROOT,
        env=kept | environ,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def test_service_reaches_a_redis_whose_password_is_in_a_file_and_never_shows_it(
    closed_redis: tuple[str, Path, Process], tmp_path: Path
) -> None:
    url, password, server = closed_redis
    environ = {"REDIS_PASSWORD_FILE": str(password), "HEARTBEAT_SECONDS": "0.5", "WAKE_SECONDS": "0.5", "LOG_LEVEL": "DEBUG"}
    with contextlib.contextmanager(running_stack)(url, tmp_path, environ) as stack:
        api, worker = stack.api(), stack.worker(wait=False)
        wait_for(lambda: httpx.get(f"{stack.base_url}/readyz").json()["queues"]["cpu"], seconds=60, what="the worker's report")
        job = httpx.post(f"{stack.base_url}/v1/jobs?wait=20", json={"inputs": ["a text"]}).json()
        assert job["status"] == "succeeded"
        command = [sys.executable, "-m", "celery", "-A", "worker", "inspect", "conf", "--timeout", "4"]
        inspect = subprocess.run(
            command, cwd=ROOT, env=os.environ | stack.environ, capture_output=True, text=True, timeout=60, check=True
        )
        assert "broker_url" in inspect.stdout
        code, found = doctor(REDIS_URL=url, REDIS_PASSWORD_FILE=str(password))
        assert code == 0, found
        processes = [Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in (api.pid, worker.pid, server.pid)]
        for shown in (api.output(), worker.output(), server.output(), inspect.stdout, found, *processes):
            assert "p/a@s" not in shown
            assert "p%2Fa%40s" not in shown


def test_redis_of_the_compose_file_asks_for_its_password_and_keeps_what_it_is_given(
    closed_redis: tuple[str, Path, Process],
) -> None:
    url, _, _ = closed_redis
    with redis.Redis.from_url(url) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    with redis.Redis.from_url(url, password=PASSWORD) as client:
        assert client.config_get("maxmemory-policy", "appendonly", "appendfsync", "maxmemory") == {
            "maxmemory-policy": "noeviction",
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory": str(100 * 2**20),
        }


def test_doctor_finds_a_wrong_password_and_a_forgetful_server(
    closed_redis: tuple[str, Path, Process], redis_server: RedisServer, redis_url: str
) -> None:
    url, _, _ = closed_redis
    code, found = doctor(REDIS_URL=url)
    assert code == 1
    assert "failure  redis" in found
    assert "REDIS_PASSWORD_FILE" in found
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            code, found = doctor(REDIS_URL=redis_url, TORCH_THREADS="999")
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    assert code == 1
    assert "failure  redis       maxmemory-policy is allkeys-lru" in found
    assert "warning  threads" in found
    assert "ok       torch" in found
    assert "ok       clock" in found


def test_flower_shows_the_workers_to_who_knows_its_password_and_lets_nobody_stop_them(
    closed_redis: tuple[str, Path, Process], tmp_path: Path
) -> None:
    url, password, _ = closed_redis
    secret = tmp_path / "flower_password"
    secret.write_text("sesame\n")
    here = {"redis://redis:6379/0": url, "/run/secrets/redis_password": password, "/run/secrets/flower_password": secret}
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]["flower"]
    environ = {name: str(here[value]) for name, value in service["environment"].items()}
    with contextlib.contextmanager(running_stack)(url, tmp_path, environ | QUICK) as stack:
        worker, second = stack.worker("cpu", name="seen", wait=False), stack.worker("gpu,cpu", name="both", wait=False)
        port = free_port()
        base = f"http://127.0.0.1:{port}"
        # The image's command, in a folder that has nothing but flowerconfig.py, with the code on the path
        stage = (ROOT / "Dockerfile").read_text(encoding="utf-8").partition("AS flower\n")[2]
        command = json.loads(stage.partition("\nCMD ")[2].partition("\n")[0])
        command = [sys.executable, "-m", command[0], "--workdir", "deploy", *command[1:]]
        flower = stack._start("flower", [*command, "--address=127.0.0.1", f"--port={port}"], {"PYTHONPATH": str(ROOT)})

        def get(path: str, *auth: str) -> httpx.Response | None:
            assert flower.popen.poll() is None, flower.output()
            try:
                return httpx.get(base + path, auth=auth or None, timeout=20)  # type: ignore[arg-type]
            except httpx.TransportError:
                return None

        def queues() -> dict[str, set[str]]:
            found = get("/api/workers?refresh=1", "flower", "sesame").json()  # type: ignore[union-attr]
            return {name: {queue["name"] for queue in about.get("active_queues", [])} for name, about in found.items()}

        checked = service["healthcheck"]["test"][-1].replace(":5555", f":{port}")
        wait_for(lambda: get("/healthcheck"), what="Flower's answer")
        subprocess.run([sys.executable, "-c", checked], timeout=30, check=True)
        for path in ("/", "/workers", "/broker", "/api/workers", "/api/tasks"):
            assert [get(path).status_code, get(path, "flower", "wrong").status_code] == [401, 401]  # type: ignore[union-attr]
        name, other = f"seen@{socket.gethostname()}", f"both@{socket.gethostname()}"
        wait_for(lambda: queues() == {name: {"cpu"}, other: {"gpu", "cpu"}}, seconds=60, what="both workers and their queues")
        page = get("/workers", "flower", "sesame").text  # type: ignore[union-attr]
        assert {name, other} <= set(re.findall(r"\w+@[\w.-]+", page))
        stopped = httpx.post(f"{base}/api/worker/shutdown/{name}", auth=("flower", "sesame"))
        assert (stopped.status_code, worker.popen.poll(), second.popen.poll()) == (403, None, None)
        shown = get(f"/worker/{name}", "flower", "sesame").text + get("/broker", "flower", "sesame").text  # type: ignore[union-attr]
        for text in (shown, flower.output()):
            assert "p/a@s" not in text
            assert "p%2Fa%40s" not in text
        assert flower.stop() == 0


def test_doctor_names_a_bad_setting() -> None:
    code, found = doctor(DEVICE="tpu")
    assert code == 1
    assert found.startswith("failure  settings    DEVICE must be one of")


def test_alive_file_is_touched_as_long_as_both_processes_of_a_worker_live(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "alive"
    worker = stack.worker(ALIVE_FILE=str(file))
    first = wait_for(lambda: file.exists() and file.stat().st_mtime)
    wait_for(lambda: file.stat().st_mtime > first, what="the next touch")
    worker.popen.kill()  # the parent alone
    wait_for(lambda: time.time() - file.stat().st_mtime > 2, what="the end of the touching")


def test_alive_file_goes_stale_when_the_process_with_the_model_hangs(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "alive"
    worker = stack.worker(ALIVE_FILE=str(file))
    (child,) = worker.children()
    os.kill(child, signal.SIGSTOP)
    wait_for(lambda: time.time() - file.stat().st_mtime > 2, what="the end of the touching")
    os.kill(child, signal.SIGCONT)
    wait_for(lambda: time.time() - file.stat().st_mtime < 1, what="the touching again")


def test_worker_that_cannot_touch_its_alive_file_says_so_and_works(stack: Stack, tmp_path: Path) -> None:
    worker = stack.worker(ALIVE_FILE=str(tmp_path / "missing" / "alive"))
    assert "cannot be touched: No such file or directory" in worker.output()
