"""Keys, tenants and limits of the real API."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from api.answers import SECURITY_HEADERS
from tests.integration.test_api_requests import error_of, exchange
from tests.integration.test_api_start import run_api
from tests.ledger_driver import Driver
from tests.processes import ROOT, Stack, free_port, wait_for

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys"


def make_key(file: Path, name: str) -> str:
    """As a person does."""
    command = ["make", "-s", "key", f"NAME={name}", f"PYTHON={sys.executable}"]
    environ = {"PATH": os.environ["PATH"], "API_KEYS_FILE": str(file)}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def keys(key_file: Path) -> dict[str, str]:
    return {name: make_key(key_file, name) for name in ("alice", "bob")}


@pytest.fixture(scope="module")
def api_environ(key_file: Path, keys: dict[str, str]) -> dict[str, str]:
    return {"API_KEYS_FILE": str(key_file), "LOG_LEVEL": "DEBUG", "SHARD_INPUTS": "2"}


@pytest.fixture
def alice(api: httpx.Client, keys: dict[str, str]) -> Iterator[httpx.Client]:
    with client_of(api, keys["alice"]) as found:
        yield found


@pytest.fixture
def bob(api: httpx.Client, keys: dict[str, str]) -> Iterator[httpx.Client]:
    with client_of(api, keys["bob"]) as found:
        yield found


def client_of(api: httpx.Client, key: str) -> httpx.Client:
    return httpx.Client(base_url=api.base_url, timeout=60, headers={"Authorization": f"Bearer {key}"})


def test_stranger_is_told_to_bring_a_key_also_while_sending_much(api: httpx.Client) -> None:
    assert api.get("/healthz").json() == {"status": "ok"}
    for answer in (
        api.get("/readyz"),
        api.get("/v1/queues"),
        api.post("/v1/jobs", json={"inputs": ["a private sentence"]}),
        api.post("/v1/jobs", content=b"x" * 2_000_000, headers={"Content-Type": "application/x-ndjson"}),
        api.get("/v1/jobs", headers={"Authorization": "Bearer a private sentence"}),
    ):
        error_of(answer, 401)
        assert answer.headers["www-authenticate"] == "Bearer"


def test_tenants_see_nothing_of_each_other(alice: httpx.Client, bob: httpx.Client, driver: Driver) -> None:
    again = {"Idempotency-Key": "same"}
    job_id = alice.post("/v1/jobs", json={"inputs": ["a", "b"]}, headers=again).json()["id"]
    driver.work_all()
    assert alice.get(f"/v1/jobs/{job_id}/result").json()["complete"]
    assert [job["id"] for job in alice.get("/v1/jobs").json()["data"]] == [job_id]
    assert bob.get("/v1/jobs").json()["data"] == []
    for method, path in (
        ("GET", f"/v1/jobs/{job_id}"),
        ("GET", f"/v1/jobs/{job_id}?wait=1"),
        ("GET", f"/v1/jobs/{job_id}/result"),
        ("POST", f"/v1/jobs/{job_id}/cancel"),
        ("DELETE", f"/v1/jobs/{job_id}"),
        ("GET", f"/v1/jobs?after={job_id}"),
    ):
        unknown = error_of(bob.request(method, path.replace(job_id, "job_x")), 404, code="job_not_found")
        assert error_of(bob.request(method, path), 404, code="job_not_found") == unknown.replace("job_x", job_id)
    other = bob.post("/v1/jobs", json={"inputs": ["something else"]}, headers=again)
    assert (other.status_code, other.json()["id"] != job_id) == (202, True)
    assert alice.delete(f"/v1/jobs/{job_id}").json()["deleted"]


def test_second_key_of_a_tenant_opens_the_same_jobs_and_keys_can_be_taken_back(
    api: httpx.Client, alice: httpx.Client, key_file: Path, keys: dict[str, str]
) -> None:
    job_id = alice.post("/v1/jobs", json={"inputs": ["a"]}).json()["id"]
    before = key_file.read_text()
    with client_of(api, make_key(key_file, "alice")) as second:
        wait_for(lambda: second.get(f"/v1/jobs/{job_id}").status_code == 200, seconds=5, what="the new key")
        assert alice.get(f"/v1/jobs/{job_id}").status_code == 200
        key_file.write_text(before)
        wait_for(lambda: second.get(f"/v1/jobs/{job_id}").status_code == 401, seconds=5, what="the end of the new key")
        assert alice.get(f"/v1/jobs/{job_id}").status_code == 200


def test_broken_file_of_keys_locks_nobody_out_and_is_logged(
    alice: httpx.Client, key_file: Path, api_stack: Stack, keys: dict[str, str]
) -> None:
    before = key_file.read_text()
    try:
        key_file.write_text(f"{before}{keys['bob']}\n")
        wait_for(
            lambda: (
                alice.get("/healthz")
                and alice.get("/v1/jobs").status_code == 200
                and "stay valid" in api_stack.started[0].output()
            ),
            seconds=5,
            what="the complaint",
        )
        assert "has a line 3 that is not tenant:sha256" in api_stack.started[0].output()
    finally:
        key_file.write_text(before)


def test_keys_are_in_no_log_and_no_answer(
    api: httpx.Client, alice: httpx.Client, api_stack: Stack, key_file: Path, keys: dict[str, str]
) -> None:
    answers = [alice.get(path) for path in ("/", "/v1", "/v1/jobs", "/nope", "/v1/jobs/x", "/v1/jobs?x=1")]
    answers.append(api.get("/v1/jobs", headers={"Authorization": f"Bearer {keys['alice']}x"}))
    exchange(
        api_stack,
        f"GET /v1/jobs HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {keys['alice']}\r\nX: {'x' * 9000}\r\n\r\n".encode(),
    )
    digests = [line.partition(":")[2] for line in key_file.read_text().splitlines()]
    for text in (api_stack.started[0].output(), *(answer.text + str(answer.headers) for answer in answers)):
        assert not [secret for secret in (*keys.values(), *digests) if secret in text]
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600


def test_answers_to_what_is_no_http_have_the_security_headers_too(api_stack: Stack) -> None:
    head, _ = exchange(api_stack, b"nonsense\r\n\r\n")
    assert {name: f"{name}: {value}".encode() in head for name, value in SECURITY_HEADERS.items()} == dict.fromkeys(
        SECURITY_HEADERS, True
    )


def test_example_client_takes_its_key_from_the_environment(api_stack: Stack, keys: dict[str, str], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a passage")
    command = [
        sys.executable,
        "examples/client.py",
        str(text),
        "--url",
        api_stack.base_url,
        "--output",
        str(tmp_path / "out.npy"),
    ]

    def run(**environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=ROOT, env=os.environ | environ, capture_output=True, text=True, timeout=60, check=False
        )

    assert "an API key is needed" in run(API_KEY="").stderr
    worker = api_stack.worker()
    try:
        done = run(API_KEY=keys["alice"])
        assert done.returncode == 0, done.stderr
    finally:
        worker.stop()


# How it starts ----------------------------------------------------------------------------------------------------------


def test_open_address_without_keys_is_refused_in_one_line() -> None:
    ended = run_api(API_HOST="0.0.0.0", API_PORT=str(free_port()))
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert "API_HOST=0.0.0.0 can be reached by others" in ended.stderr


@pytest.mark.parametrize("content", [None, "", "va_a-key-in-the-wrong-place\n"])
def test_file_of_keys_that_cannot_be_used_is_told_in_one_line(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    ended = run_api(API_KEYS_FILE=str(file), API_PORT=str(free_port()))
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert "API_KEYS_FILE" in ended.stderr
    assert "wrong-place" not in ended.stderr


@pytest.mark.parametrize("way", ["API_KEYS_FILE", "ALLOW_ANONYMOUS"])
def test_open_address_is_served_with_keys_or_with_leave(redis_url: str, tmp_path: Path, key_file: Path, way: str) -> None:
    stack = Stack(redis_url, tmp_path, {"API_HOST": "0.0.0.0"})
    try:
        stack.api(**{way: str(key_file) if way == "API_KEYS_FILE" else "1"})
        assert httpx.get(f"{stack.base_url}/v1/jobs").status_code == (401 if way == "API_KEYS_FILE" else 200)
    finally:
        stack.close()


# Limits -----------------------------------------------------------------------------------------------------------------


def test_limits_hold_for_each_tenant_over_several_processes(
    redis_url: str, tmp_path: Path, key_file: Path, keys: dict[str, str]
) -> None:
    limits = {
        "MAX_TENANT_REQUESTS_PER_MINUTE": "12",
        "MAX_TENANT_INPUTS_PER_MINUTE": "8",
        "MAX_TENANT_JOBS": "2",
        "API_KEYS_FILE": str(key_file),
    }
    stack = Stack(redis_url, tmp_path, limits)
    try:
        urls = [stack.base_url for _ in range(2) if stack.api()]
        alice, bob = ({"Authorization": f"Bearer {keys[name]}"} for name in ("alice", "bob"))

        def post(inputs: int, headers: dict[str, str], url: str) -> httpx.Response:
            return httpx.post(f"{url}/v1/jobs", json={"inputs": ["a"] * inputs}, headers=headers)

        first = post(3, alice, urls[0])
        assert first.status_code == 202
        assert [first.headers[f"x-ratelimit-{what}-requests"] for what in ("limit", "remaining")] == ["12", "11"]
        assert [first.headers[f"x-ratelimit-{what}-inputs"] for what in ("limit", "remaining")] == ["8", "5"]
        assert first.headers["x-ratelimit-reset-requests"].endswith("s")
        limited = post(6, alice, urls[1])
        assert "8 inputs a minute (MAX_TENANT_INPUTS_PER_MINUTE), 6 were sent" in error_of(
            limited, 429, code="rate_limit_exceeded"
        )
        assert 1 <= int(limited.headers["retry-after"]) <= 60
        assert "x-should-retry" not in limited.headers
        assert post(1, alice, urls[1]).status_code == 202
        full = post(1, alice, urls[0])
        assert "2 of your jobs are not over, the limit is 2 (MAX_TENANT_JOBS)" in error_of(full, 429, code="backlog_full")
        lines = httpx.post(f"{urls[0]}/v1/jobs", content=b'"a"\n', headers=alice | {"Content-Type": "application/x-ndjson"})
        error_of(lines, 429, code="backlog_full")
        for n in range(8):
            left = httpx.get(f"{urls[n % 2]}/v1/jobs", headers=alice)
        assert left.status_code == 429 or left.headers["x-ratelimit-remaining-requests"] == "0", "a few seconds give one back"
        over = wait_for(
            lambda: (answer := httpx.get(f"{urls[0]}/v1/queues", headers=alice)).status_code == 429 and answer, seconds=10
        )
        message = error_of(over, 429, code="rate_limit_exceeded")
        assert "your limit is 12 requests a minute (MAX_TENANT_REQUESTS_PER_MINUTE); try again in" in message
        assert (over.headers["x-ratelimit-remaining-requests"], 1 <= int(over.headers["retry-after"]) <= 5) == ("0", True)
        assert httpx.get(f"{urls[0]}/healthz").status_code == 200
        assert post(3, bob, urls[0]).status_code == 202
    finally:
        stack.close()


def test_files_and_batches_belong_to_their_tenant(alice: httpx.Client, bob: httpx.Client, driver: Driver) -> None:
    body = {"model": "sentence-transformers/all-MiniLM-L6-v2", "input": "a text"}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": body}
    sent = alice.post("/v1/files", files={"file": ("a", json.dumps(line).encode())}, data={"purpose": "batch"}).json()
    asked = {"input_file_id": sent["id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
    error_of(bob.post("/v1/batches", json=asked), 404, code="file_not_found")
    batch = alice.post("/v1/batches", json=asked).json()
    error_of(bob.post(f"/v1/batches/{batch['id']}/cancel"), 404, code="batch_not_found")
    driver.work_all()
    output = alice.get(f"/v1/batches/{batch['id']}").json()["output_file_id"]
    for path in (
        f"/v1/batches/{batch['id']}",
        *(f"/v1/files/{name}{end}" for name in (sent["id"], output) for end in ("", "/content")),
    ):
        assert alice.get(path).status_code == 200
        error_of(bob.get(path), 404)
    for name in (sent["id"], output):
        error_of(bob.delete(f"/v1/files/{name}"), 404, code="file_not_found")
    for path in ("/v1/files", "/v1/batches"):
        assert bob.get(path).json()["data"] == []
        assert alice.get(path).json()["data"]
    assert alice.get(f"/v1/files/{output}/content").status_code == 200
