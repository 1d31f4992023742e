"""The compose file, started for real: healthy services, a job through the published port, a worker that dies."""

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.containers.conftest import docker
from tests.processes import ROOT, free_port, wait_for

TEXTS = [f"This is text number {n}, and it is about {'cats' if n % 2 else 'dogs'}." for n in range(3000)]


class Services:
    """The running services of docker-compose.yml, under a project name of their own."""

    def __init__(self) -> None:
        self.port = free_port()
        self._environ = {"COMPOSE_PROJECT_NAME": "vector-api-test", "API_PORT": str(self.port), "HF_HUB_OFFLINE": "1"}
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def compose(self, *arguments: str, check: bool = True) -> str:
        return docker("compose", *arguments, seconds=300, check=check, **self._environ)

    def request(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"})
        with self._opener.open(request, timeout=60) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def services(cpu_image: str, api_image: str) -> Iterator[Services]:
    subprocess.run(["sh", "deploy/make-secrets.sh"], cwd=ROOT, check=True)
    found = Services()
    try:
        found.compose("up", "-d", "--no-build", "--wait", "--wait-timeout", "240")
        yield found
    finally:
        found.compose("down", "-v", "--remove-orphans", check=False)


def test_job_posted_at_the_published_port_is_embedded(services: Services) -> None:
    job = services.request("/v1/jobs?wait=30", {"inputs": ["Hello, world"], "queue": "cpu"})
    assert job["status"] == "succeeded"
    result = services.request(f"/v1/jobs/{job['id']}/result")
    assert len(result["data"][0]["embedding"]) == 384


def test_redis_cannot_be_reached_from_outside_nor_without_its_password(services: Services) -> None:
    (state,) = [json.loads(line) for line in services.compose("ps", "--format", "json", "redis").splitlines()]
    assert [port["PublishedPort"] for port in state["Publishers"] or [] if port["PublishedPort"]] == []
    script = "import redis; redis.Redis('redis').ping()"
    assert "AuthenticationError" in services.compose("exec", "-T", "api", "python", "-c", script, check=False)


def test_password_is_in_no_description_of_the_containers(services: Services) -> None:
    password = (ROOT / "deploy" / "secrets" / "redis_password").read_text().strip()
    for container in services.compose("ps", "-q").split():
        assert password not in docker("inspect", container)
        assert password not in docker("exec", container, "sh", "-c", "cat /proc/[0-9]*/cmdline")
    assert password not in services.compose("logs")


def test_doctor_is_content_inside(services: Services) -> None:
    found = services.compose("exec", "-T", "worker", "python", "-m", "doctor")
    assert "failure" not in found
    assert "ok       redis" in found


def test_worker_that_is_killed_under_load_loses_nothing(services: Services) -> None:
    job = services.request("/v1/jobs", {"inputs": TEXTS, "queue": "cpu"})
    wait_for(lambda: services.request(f"/v1/jobs/{job['id']}")["counts"]["done"] > 0, seconds=60, what="the first vectors")
    services.compose("kill", "-s", "KILL", "worker")
    services.compose("start", "worker")
    ended = wait_for(
        lambda: (found := services.request(f"/v1/jobs/{job['id']}"))["status"] == "succeeded" and found,
        seconds=180,
        what="the end of the job",
    )
    assert ended["counts"] == {"total": len(TEXTS), "done": len(TEXTS), "failed": 0}


def test_everything_restarted_under_load_loses_nothing(services: Services) -> None:
    job = services.request("/v1/jobs", {"inputs": TEXTS, "queue": "cpu"})
    services.compose("restart")
    deadline = time.monotonic() + 180
    while True:
        assert time.monotonic() < deadline, "the job did not end"
        try:
            if services.request(f"/v1/jobs/{job['id']}")["status"] == "succeeded":
                break
        except OSError:  # the API starts
            pass
        time.sleep(0.5)
    assert services.request(f"/v1/jobs/{job['id']}")["counts"]["done"] == len(TEXTS)


def test_worker_ends_in_order_when_it_is_stopped(services: Services) -> None:
    services.compose("stop", "worker")
    states = [json.loads(line) for line in services.compose("ps", "-a", "--format", "json", "worker").splitlines()]
    assert [state["ExitCode"] for state in states] == [0]
