"""The API's process: how it starts, what it refuses to start with, what it never loads, how it stops."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
import redis

from core.config import Settings
from tests.conftest import QUICK
from tests.processes import ROOT, Process, Stack, free_port, wait_for

NO_REDIS = "redis://127.0.0.1:1/0"
MOST_RESIDENT_BYTES = 80 * 2**20


def run_api(**environ: str) -> subprocess.CompletedProcess[str]:
    clean = {"PATH": "/usr/bin:/bin", "REDIS_URL": NO_REDIS}
    return subprocess.run(
        [sys.executable, "-m", "api"], cwd=ROOT, env=clean | environ, capture_output=True, text=True, timeout=60, check=False
    )


def test_port_in_use_is_told_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run_api(API_PORT=str(port))
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert f"cannot listen at 127.0.0.1:{port} (address already in use)" in ended.stderr
    assert f"API_PORT={port + 1}" in ended.stderr


@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-host.invalid"])
def test_foreign_address_is_told_in_one_line(host: str) -> None:
    ended = run_api(API_HOST=host, API_PORT=str(free_port()), ALLOW_ANONYMOUS="1")
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert host in ended.stderr
    assert "API_HOST" in ended.stderr


@pytest.mark.parametrize(
    ("variable", "value"),
    [("API_PORT", "eighty"), ("API_PORT", "70000"), ("MAX_INPUTS", "0"), ("DEVICE", "tpu"), ("LOG_LEVEL", "loud")],
)
def test_bad_setting_is_told_in_one_line(variable: str, value: str) -> None:
    ended = run_api(**{variable: value})
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert variable in ended.stderr
    assert value in ended.stderr


@pytest.mark.parametrize("url", ["localhost:6379", "http://localhost", "redis://", "unix://", "redis://host:port/0"])
def test_bad_redis_url_is_told_without_showing_it(url: str) -> None:
    ended = run_api(REDIS_URL=url)
    assert ended.returncode == 2
    assert "REDIS_URL must be redis://" in ended.stderr
    assert f"got {url}" not in ended.stderr


def test_api_never_loads_torch_or_the_worker() -> None:
    code = (
        "import sys, json, api, api.server, core.config; api.create_app(core.config.Settings());"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    loaded = set(json.loads(ended.stdout))
    assert not loaded & {"torch", "transformers", "sentence_transformers", "worker", "tests", "tokenizers", "scipy", "pandas"}
    assert {"api", "core", "flask"} <= loaded


def children_of(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children()


def test_process_is_small_serves_and_stops_when_told(tmp_path: Path) -> None:
    stack = Stack(NO_REDIS, tmp_path, QUICK)
    try:
        process = stack.api()
        (server,) = children_of(process.pid)
        with httpx.Client(base_url=stack.base_url) as client:
            for _ in range(10):
                client.get("/readyz")
        assert server.memory_info().rss < MOST_RESIDENT_BYTES
        assert "Listening at: http://127.0.0.1" in process.output()
        assert process.stop() == 0
        assert not server.is_running()
        assert "Traceback" not in process.output()
    finally:
        stack.close()


@pytest.mark.integration
def test_stop_ends_requests_that_wait(redis_url: str, tmp_path: Path) -> None:
    """Stopping takes no 30 s because somebody waits for a job; the waiter gets its answer."""
    stack = Stack(redis_url, tmp_path, QUICK)
    try:
        process = stack.api()
        job_id = httpx.post(f"{stack.base_url}/v1/jobs", json={"inputs": ["a"]}).json()["id"]
        waiter = subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"import httpx; print(httpx.get('{stack.base_url}/v1/jobs/{job_id}?wait=30', timeout=60).text)",
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        with redis.Redis.from_url(redis_url) as server:
            wait_for(lambda: server.pubsub_numsub("vector-api:ended")[0][1], what="the waiter")
        started = time.monotonic()
        process.signal(signal.SIGTERM)
        told, _ = waiter.communicate(timeout=60)
        assert json.loads(told)["status"] == "queued"
        assert process.popen.wait(timeout=60) == 0
        assert time.monotonic() - started < 15, "not the 30 s that the request asked for"
    finally:
        stack.close()


@pytest.mark.integration
def test_any_wsgi_server_can_run_the_factory(redis_url: str, tmp_path: Path) -> None:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "--bind",
        f"127.0.0.1:{port}",
        "--no-control-socket",
        "--threads",
        "4",
        "api:create_app()",
    ]
    process = Process(command, {"REDIS_URL": redis_url}, tmp_path / "gunicorn.log")
    try:
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            assert process.popen.poll() is None, process.output()
            try:
                return httpx.get(f"{url}/readyz").status_code == 200
            except httpx.TransportError:
                return False

        wait_for(answers, what="the API's answer")
        assert httpx.post(f"{url}/v1/jobs", json={"inputs": ["a"]}).status_code == 202
        assert httpx.post(f"{url}/v1/jobs", json={"inputs": ["a" * 40_000_000]}, timeout=60).status_code == 413
        assert httpx.get(f"{url}/v1").json()["model"] == Settings().model_name
    finally:
        process.kill_group()
