"""Server-sent events of a job, from a real API and a real worker with a fake engine."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.fakes import vector_of
from tests.integration.test_api_requests import error_of
from tests.ledger_driver import Driver
from tests.processes import Stack, wait_for

pytestmark = pytest.mark.integration

THREADS = 8
PLACES = THREADS // 4


@pytest.fixture(scope="module")
def api_environ() -> dict[str, str]:
    return {"SHARD_INPUTS": "2", "API_THREADS": str(THREADS), "EMBEDDINGS_WAIT_SECONDS": "0.5"}


def new_job(api: httpx.Client, inputs: int = 6) -> str:
    answer = api.post("/v1/jobs", json={"inputs": [f"text {n}" for n in range(inputs)]})
    assert answer.status_code == 202
    return answer.json()["id"]


def read_events(answer: httpx.Response) -> Iterator[tuple[str, str, Any]]:
    """Name, id and data of the events, as a browser's EventSource takes the stream apart."""
    assert answer.status_code == 200
    assert answer.headers["content-type"].partition(";")[0] == "text/event-stream"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["cache-control"] == "no-store"
    fields: dict[str, str] = {}
    for line in answer.iter_lines():
        name, _, value = line.partition(": ")
        if not line and "data" in fields:
            yield fields["event"], fields.get("id", ""), json.loads(fields["data"])
        fields = fields | {name: value} if line else {}


def follow(api: httpx.Client, job_id: str) -> list[tuple[str, str, Any]]:
    with api.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        return list(read_events(answer))


def test_progress_comes_while_the_job_runs_and_the_end_at_once(api: httpx.Client, driver: Driver) -> None:
    job_id = new_job(api)
    with api.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        events = read_events(answer)
        name, _, first = next(events)
        assert (name, first["status"], first["counts"]) == ("progress", "queued", {"total": 6, "done": 0, "failed": 0})
        assert (first["inputs_per_second"], first["remaining_seconds"]) == (None, None)
        driver.work(1, failed={1})
        second = next(data for _, event_id, data in events if event_id == "2")
        assert (second["counts"], second["progress"]) == ({"total": 6, "done": 1, "failed": 1}, pytest.approx(1 / 3))
        assert 0 < second["inputs_per_second"] < 3
        assert second["remaining_seconds"] == pytest.approx(4 / second["inputs_per_second"], rel=0.1)
        driver.work_all()
        ended = time.time()
        *_, (name, event_id, record) = events
        assert time.time() - ended < 5
    assert (name, event_id) == ("end", "end")
    assert record == api.get(f"/v1/jobs/{job_id}").json()


def test_ended_job_is_told_in_one_event_and_never_again(api: httpx.Client, driver: Driver) -> None:
    job_id = new_job(api)
    driver.work_all()
    ((name, event_id, record),) = follow(api, job_id)
    assert (name, event_id, record["status"]) == ("end", "end", "succeeded")
    url = f"/v1/jobs/{job_id}/events"
    assert api.get(url, headers={"Last-Event-ID": "4"}).text.count("event: end") == 1
    again = api.get(url, headers={"Last-Event-ID": "end"})
    assert (again.status_code, again.content) == (204, b"")


def test_cancelled_and_deleted_jobs_end_their_streams(api: httpx.Client, driver: Driver) -> None:
    cancelled = new_job(api)
    with api.stream("GET", f"/v1/jobs/{cancelled}/events") as answer:
        events = read_events(answer)
        next(events)
        api.delete(f"/v1/jobs/{cancelled}")
        *_, (name, _, record) = events
    assert (name, record["status"]) == ("end", "cancelled")
    error_of(api.get("/v1/jobs/job_0/events"), 404, code="job_not_found")
    error_of(api.get(f"/v1/jobs/{cancelled}/events?wait=1"), 400, "wait")


def test_no_more_streams_than_leave_threads_for_others_and_a_client_that_goes_frees_its_own(
    api: httpx.Client, api_stack: Stack, driver: Driver
) -> None:
    job_id = new_job(api)
    url = urlsplit(api_stack.base_url)
    request = f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: here\r\n\r\n".encode()
    streams = []
    for _ in range(PLACES):
        stream = socket.create_connection((url.hostname, url.port), timeout=30)
        stream.sendall(request)
        assert stream.recv(12) == b"HTTP/1.1 200"
        streams.append(stream)
    answer = api.get(f"/v1/jobs/{job_id}/events")
    error_of(answer, 429, code="too_many_at_once")
    assert int(answer.headers["retry-after"]) > 0
    started = time.monotonic()
    assert api.get(f"/v1/jobs/{job_id}?wait=2").status_code == 200
    assert time.monotonic() - started > 1.5, "streams take no place from those who wait"
    embedding = api.post("/v1/embeddings", json={"input": "a"}, headers={"Idempotency-Key": "k"})
    error_of(embedding, 503, code="not_in_time")
    assert api.get("/readyz").status_code in (200, 503)
    for stream in streams[:1]:
        stream.close()

    def has_place() -> bool:
        with api.stream("GET", f"/v1/jobs/{job_id}/events") as found:
            return found.status_code == 200

    wait_for(has_place, seconds=15, what="a free place")
    driver.work_all()
    for stream in streams[1:]:
        with stream, stream.makefile("rb") as lines:
            assert any(line == b"event: end\n" for line in lines)
    assert follow(api, job_id)[-1][0] == "end"


def test_head_takes_no_place(api: httpx.Client, driver: Driver) -> None:
    job_id = new_job(api)
    for _ in range(PLACES + 1):
        assert api.head(f"/v1/jobs/{job_id}/events").status_code == 200
    driver.work_all()


def test_stream_ends_soon_when_the_api_is_stopped(stack: Stack) -> None:
    process = stack.api()
    with httpx.Client(base_url=stack.base_url, timeout=60) as api:
        job_id = new_job(api)
        with api.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
            events = read_events(answer)
            next(events)
            started = time.monotonic()
            threading.Thread(target=process.stop).start()
            assert all(name == "progress" for name, _, _ in events)
    process.popen.wait(timeout=30)
    assert time.monotonic() - started < 15


def test_real_worker_is_followed_from_the_first_shard_to_the_vectors(stack: Stack) -> None:
    stack.api(SHARD_INPUTS="4")
    stack.worker(FAKE_BATCH_SECONDS="0.3", BATCH_SIZE="1")
    with httpx.Client(base_url=stack.base_url, timeout=60) as api:
        job_id = new_job(api, 48)
        events = follow(api, job_id)
        vectors = api.get(f"/v1/jobs/{job_id}/result").json()["data"]
    names = [name for name, _, _ in events]
    assert names == ["progress"] * (len(names) - 1) + ["end"]
    done = [data["counts"]["done"] for _, _, data in events]
    assert done == sorted(done)
    assert done[-1] == 48
    assert len(vectors) == 48
    assert vectors[7]["embedding"] == pytest.approx(vector_of("text 7").tolist())
