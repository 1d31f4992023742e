"""Redis dead, frozen or full: every route says so within a second, and works again when Redis does."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from launcher.redis_server import RedisServer
from tests.conftest import QUICK
from tests.integration.test_api_requests import error_of
from tests.processes import Stack, free_port, running_stack, wait_for

pytestmark = pytest.mark.integration

MOST_SECONDS = 1.5
"""The promise is one second; the rest is for a busy test machine."""

NDJSON = {"Content-Type": "application/x-ndjson"}

ROUTES: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/readyz", {}),
    ("GET", "/v1/queues", {}),
    ("GET", "/v1/jobs", {}),
    ("GET", "/v1/jobs/{id}", {}),
    ("GET", "/v1/jobs/{id}?wait=10", {}),
    ("GET", "/v1/jobs/{id}/result", {}),
    ("GET", "/v1/jobs/{id}/result?format=npy", {}),
    ("DELETE", "/v1/jobs/{id}", {}),
    ("POST", "/v1/jobs/{id}/cancel", {}),
    ("POST", "/v1/jobs", {"json": {"inputs": ["a"]}}),
    ("POST", "/v1/jobs?wait=10", {"json": {"inputs": ["a"]}}),
    ("POST", "/v1/jobs", {"json": {"inputs": ["a"]}, "headers": {"Idempotency-Key": "k"}}),
    ("POST", "/v1/jobs", {"content": b'"a"\n' * 100_000, "headers": NDJSON}),
]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis", {"appendfsync": "no"}) as found:
        yield found


@pytest.fixture
def down_stack(server: RedisServer, tmp_path: Path) -> Iterator[Stack]:
    for stack in running_stack(server.url, tmp_path, QUICK):
        stack.api()
        yield stack


def assert_every_route_says_so(client: httpx.Client, job_id: str) -> None:
    with ThreadPoolExecutor(4) as pool:  # none may wait behind another
        list(pool.map(lambda route: assert_says_so(client, job_id, *route), ROUTES))
    assert client.get("/healthz").status_code == 200, "the process itself is well"
    error_of(client.get("/nope"), 404)


def assert_says_so(client: httpx.Client, job_id: str, method: str, url: str, content: dict[str, Any]) -> None:
    started = time.monotonic()
    answer = client.request(method, url.format(id=job_id), **content)
    seconds = time.monotonic() - started
    message = error_of(answer, 503, code="ledger_unavailable")
    assert "redis.sock" not in message, "nothing of our own addresses"
    assert answer.json()["error"]["type"] == "server_error"
    assert int(answer.headers["retry-after"]) >= 1
    assert "x-should-retry" not in answer.headers
    assert seconds < MOST_SECONDS, f"{method} {url} took {seconds:.2f} s"


def new_job(client: httpx.Client) -> str:
    answer = client.post("/v1/jobs", json={"inputs": ["a", "b"]})
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def test_frozen_redis_is_told_within_a_second(server: RedisServer, down_stack: Stack) -> None:
    assert server.process is not None
    with httpx.Client(base_url=down_stack.base_url, timeout=30) as client:
        job_id = new_job(client)
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            assert_every_route_says_so(client, job_id)
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        wait_for(lambda: client.get("/readyz").status_code == 200, what="readiness")
        assert client.get(f"/v1/jobs/{job_id}").json()["counts"]["total"] == 2


def test_dead_redis_is_told_within_a_second_and_jobs_are_there_when_it_is_back(server: RedisServer, down_stack: Stack) -> None:
    assert server.process is not None
    with httpx.Client(base_url=down_stack.base_url, timeout=30) as client:
        job_id = new_job(client)
        server.stop(signal.SIGKILL)
        assert_every_route_says_so(client, job_id)
        server.start()
        wait_for(lambda: client.get("/readyz").status_code == 200, what="readiness")
        assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "queued"
        new_job(client)


def test_redis_that_stops_under_waiting_requests_and_uploads(server: RedisServer, down_stack: Stack) -> None:
    """What is under way when Redis freezes ends with 503 too; so do many at once, none behind another."""
    assert server.process is not None
    frozen = threading.Event()
    found: list[tuple[float, httpx.Response]] = []

    def lines() -> Iterator[bytes]:
        for _ in range(50):
            yield b'"a"\n' * 1000
        assert frozen.wait(30)
        for _ in range(200):
            yield b'"a"\n' * 10_000

    def upload() -> None:
        answer = httpx.post(f"{down_stack.base_url}/v1/jobs", content=lines(), headers=NDJSON, timeout=30)
        found.append((time.monotonic(), answer))

    def wait(job_id: str) -> None:
        answer = httpx.get(f"{down_stack.base_url}/v1/jobs/{job_id}?wait=30", timeout=60)
        found.append((time.monotonic(), answer))

    with httpx.Client(base_url=down_stack.base_url, timeout=30) as client:
        job_id = new_job(client)
    threads = [threading.Thread(target=upload)] + [threading.Thread(target=wait, args=(job_id,)) for _ in range(20)]
    for thread in threads:
        thread.start()
    with redis.Redis.from_url(server.url) as connection:
        wait_for(lambda: list(connection.scan_iter("vector-api:inputs:*", count=1000))[1:], what="the first staged shards")
        wait_for(lambda: connection.pubsub_numsub("vector-api:ended")[0][1], what="the waiters")
    started = time.monotonic()
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        frozen.set()
        for thread in threads:
            thread.join()
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    assert {answer.status_code for _, answer in found} == {503}
    slowest = max(moment for moment, _ in found) - started
    assert slowest < MOST_SECONDS + 1.0, f"{slowest:.2f} s: a waiter looks once a second, and is told within the next"


def test_full_redis_refuses_new_jobs_and_nothing_else(server: RedisServer, down_stack: Stack) -> None:
    with httpx.Client(base_url=down_stack.base_url, timeout=30) as client, redis.Redis.from_url(server.url) as connection:
        job_id = new_job(client)
        connection.config_set("maxmemory", "1mb")
        answer = client.post("/v1/jobs", json={"inputs": ["a"]})
        assert "refuses to write" in error_of(answer, 503, code="ledger_unavailable")
        error_of(client.post("/v1/jobs", content=b'"a"\n' * 1000, headers=NDJSON), 503)
        assert client.get(f"/v1/jobs/{job_id}").status_code == 200
        connection.config_set("maxmemory", "0")
        new_job(client)


def test_api_starts_without_redis_and_is_ready_once_it_is_there(tmp_path: Path) -> None:
    port = free_port()
    stack = Stack(f"redis://127.0.0.1:{port}/0", tmp_path, QUICK)
    try:
        stack.api()
        with httpx.Client(base_url=stack.base_url, timeout=30) as client:
            error_of(client.get("/readyz"), 503)
            with RedisServer(tmp_path / "redis", {"port": str(port), "appendfsync": "no"}):
                wait_for(lambda: client.get("/readyz").status_code == 200, what="readiness")
                new_job(client)
    finally:
        stack.close()
