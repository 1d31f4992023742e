"""What real processes log: objects of JSON with ids, and no text, whatever goes wrong with one."""

import json
import re
import socket
from urllib.parse import urlsplit

import httpx
import pytest

from core.ledger import Ledger
from tests.integration.test_worker import ended
from tests.processes import Process, Stack, wait_for

pytestmark = pytest.mark.integration

MARKER = "Zwergspitzmaus"
TROUBLES = ("BREAK", "RAISE", "OOM:0", "KILL", "fine")


def send_bad_requests(url: str) -> None:
    """Bodies with the marker that are refused, each in another place."""
    bodies: list[bytes] = [
        json.dumps({"inputs": [{"text": 3, "id": MARKER}]}).encode(),
        json.dumps({"inputs": [MARKER, ""]}).encode(),
        json.dumps({"inputs": [MARKER], "prompt_name": MARKER}).encode(),
        json.dumps({"inputs": [MARKER], MARKER: 1}).encode(),
        f'{{"inputs": ["{MARKER}'.encode(),
        f'{{"inputs": ["{MARKER}\\ud800"]}}'.encode(),
        f'{{"inputs": ["{MARKER}'.encode() + b'\xff"]}',
    ]
    for body in bodies:
        assert httpx.post(f"{url}/v1/jobs", content=body, headers={"content-type": "application/json"}).status_code == 400
    for kind, path in (("application/x-ndjson", "/v1/jobs"), ("application/json", "/v1/embeddings")):
        assert httpx.post(f"{url}{path}", content=f'"{MARKER}', headers={"content-type": kind}).status_code == 400
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port), timeout=10) as client:  # its end is taken for another request
        body = f'{{"inputs": ["a"]}}{MARKER} is what follows\r\n\r\n'.encode()
        head = "POST /v1/jobs HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n"
        client.sendall(head.encode() + body)
        answer = b""
        while piece := client.recv(65536):
            answer += piece
    assert b"202 ACCEPTED" in answer
    assert b"400 Bad Request" in answer


def of_level(process: Process, *levels: str) -> list[dict]:
    return [line for line in process.lines() if line["level"] in levels]


def test_lines_have_ids_and_never_a_text(stack: Stack, ledger: Ledger) -> None:
    stack.environ["LOG_LEVEL"] = "DEBUG"
    api = stack.api()
    worker = stack.worker(MAX_ATTEMPTS="1", name="logging")
    (name,) = (found.name for found in ledger.workers())
    jobs: dict[str, str] = {}
    for trouble in TROUBLES:
        answer = httpx.post(
            f"{stack.base_url}/v1/jobs", json={"inputs": [f"{trouble} {MARKER}"]}, headers={"x-request-id": f"r-{trouble}"}
        )
        jobs[trouble] = answer.json()["id"]
    codes = {trouble: [error.code for error in ended(ledger, job_id).errors] for trouble, job_id in jobs.items()}
    assert codes == {
        "BREAK": ["embedding_failed"],
        "RAISE": ["embedding_failed"],
        "OOM:0": ["out_of_memory"],
        "KILL": ["worker_died"],
        "fine": [],
    }
    send_bad_requests(stack.base_url)
    httpx.get(f"{stack.base_url}/readyz")
    httpx.get(f"{stack.base_url}/v1/jobs/{MARKER}%0Anew%20line", params={"q": MARKER * 2})

    told = {"job": jobs["BREAK"], "shard": "0+1", "worker": name, "queue": "cpu", "level": "WARNING", "service": "worker"}
    (broken,) = (line for line in of_level(worker, "WARNING") if "cannot be tokenised" in line["message"])
    assert broken | told == broken
    assert "in tokenize" in broken["traceback"]
    assert "ValueError, whose message may quote a text" in broken["traceback"]
    assert {line.get("job") for line in of_level(worker, "WARNING", "ERROR")} >= set(jobs.values()) - {jobs["fine"]}
    crash = [line for line in of_level(worker, "ERROR") if "signal 9" in line["message"]]
    assert any("WorkerLostError" in line.get("traceback", "") for line in crash), crash

    answered = [line for line in api.lines() if line["logger"] == "api.requests"]
    (accepted,) = (line for line in answered if line["request_id"] == "r-fine")
    told = {"job": jobs["fine"], "method": "POST", "endpoint": "/v1/jobs", "status": 202, "tenant": "default", "level": "INFO"}
    assert accepted | told == accepted
    assert 0 < accepted["ms"] < 30_000
    assert {line["level"] for line in answered if line.get("endpoint") in ("/healthz", "/readyz")} == {"DEBUG"}
    unread = wait_for(lambda: [line for line in api.lines() if "was not read" in line["message"]], what="the broken request")
    assert (unread[0]["status"], len(unread[0]["request_id"])) == (400, 32)

    for process in (worker, api):
        assert process.stop() == 0
        lines = process.lines()
        assert process.output().endswith("\n")
        assert all(re.fullmatch(r"2\d{3}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in lines)
        assert all({"level", "service", "logger", "message"} <= line.keys() for line in lines)
        assert not [line for line in lines if MARKER in json.dumps(line) and line["logger"] != "api.requests"]
    assert "worker: Warm shutdown (MainProcess)" in [line["message"] for line in worker.lines()]
    with_marker = [line["message"] for line in api.lines() if MARKER in line["message"]]
    assert [re.sub(" in .*", "", line) for line in with_marker] == [f"GET /v1/jobs/{MARKER}%0Anew%20line 400"]


def test_not_even_debug_shows_what_a_client_sent_before_it_left(stack: Stack) -> None:
    api = stack.api(LOG_LEVEL="DEBUG")
    place = urlsplit(stack.base_url)
    with socket.create_connection((place.hostname, place.port), timeout=10) as client:
        client.sendall(f"POST /v1/jobs HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {MARKER}\r\n".encode())
    told = "Ignored premature client disconnection. NoMoreData"
    wait_for(lambda: told in api.output(), what="the line about it")
    assert api.stop() == 0
    assert MARKER not in api.output()
