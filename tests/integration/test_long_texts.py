"""Texts beyond the model's maximum, and dry runs that tell of them, over HTTP with a real worker and the fake engine."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import redis

from launcher.redis_server import RedisServer
from tests.conftest import QUICK
from tests.fakes import DIMENSIONS
from tests.integration.test_drain import chunked_vector, long_text
from tests.processes import Stack, running_stack, wait_for

pytestmark = pytest.mark.integration

NDJSON = {"Content-Type": "application/x-ndjson"}
LONG = long_text("long", 400)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("long-texts")
    with RedisServer(folder / "redis", {"appendfsync": "no"}) as server:
        for found in running_stack(server.url, folder, QUICK | {"SHARD_INPUTS": "4"}):
            found.api()
            found.worker()
            yield found


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.base_url, timeout=100) as found:
        wait_for(lambda: found.get("/v1/models").json()["data"][0]["max_tokens"], seconds=60, what="the worker")
        yield found


def run(client: httpx.Client, query: str = "", **body: Any) -> dict[str, Any]:
    answer = client.post(f"/v1/jobs?wait=30{query}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def counters(client: httpx.Client) -> tuple[int, ...]:
    found = client.get("/v1/queues").json()["totals"]["counters"]
    return tuple(found.get(name, 0) for name in ("inputs:cpu", "tokens:cpu"))


def test_result_says_in_how_many_chunks_a_text_was_embedded(client: httpx.Client) -> None:
    job = run(client, inputs=["short", LONG], truncate="chunk", chunk_overlap=10)
    assert (job["truncate"], job["chunk_overlap"], job["truncated"]) == ("chunk", 10, 0)
    assert ["chunks" in item for item in job["data"]] == [False, True]
    assert (job["data"][1]["chunks"], job["data"][1]["truncated"]) == (2, False)
    np.testing.assert_allclose(job["data"][1]["embedding"], chunked_vector(LONG, 10), atol=1e-6)


def test_openai_clients_may_have_long_texts_in_chunks(client: httpx.Client) -> None:
    found = client.post("/v1/embeddings", json={"input": LONG, "truncate": "chunk"}).json()
    np.testing.assert_allclose(found["data"][0]["embedding"], chunked_vector(LONG), atol=1e-6)
    assert found["usage"]["total_tokens"] == 404
    refused = client.post("/v1/embeddings", json={"input": LONG, "truncate": "error"}).json()["error"]
    assert (refused["code"], '"chunk"' in refused["message"]) == ("context_length_exceeded", True)


def test_overlap_beyond_the_model_is_refused_at_once(client: httpx.Client) -> None:
    answer = client.post("/v1/jobs", json={"inputs": ["a"], "truncate": "chunk", "chunk_overlap": 129})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "chunk_overlap")
    assert "at most 128 tokens" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("truncate", "tokens", "done"), [("end", 256, 6), ("start", 256, 6), ("chunk", 404, 6), ("error", 0, 5)])
def test_dry_run_counts_and_computes_nothing(client: httpx.Client, stack: Stack, truncate: str, tokens: int, done: int) -> None:
    counted = counters(client)
    job = run(
        client, "&dry_run=1", inputs=["one", "two words", "one", LONG, {"id": "5", "text": "one"}, "six"], truncate=truncate
    )
    found = job["dry_run"]
    assert (found["inputs"], found["over_long"], found["duplicates"]) == (6, 1, 2)
    assert (found["tokens"], found["bytes"]) == (3 + 4 + 3 + 3 + 3 + tokens, done * DIMENSIONS * 4)
    assert (job["status"], job["counts"]) == ("succeeded", {"total": 6, "done": done, "failed": 6 - done})
    assert [error["code"] for error in job["errors"]] == ["text_too_long"] * (6 - done)
    assert (job["ttl_seconds"], job["links"]) == (3600, {"self": f"/v1/jobs/{job['id']}"})
    assert counters(client) == counted
    with redis.Redis.from_url(stack.redis_url) as server:
        kept = {key.decode().split(":")[1] for key in server.scan_iter(f"*{job['id']}*")}
    assert kept - {"errors"} == {"job"}


def test_dry_run_of_a_stream_estimates_how_long_it_takes(client: httpx.Client) -> None:
    run(client, inputs=["something to measure the speed with"])
    body = "".join(json.dumps(f"text {n % 30}") + "\n" for n in range(100))
    answer = client.post("/v1/jobs?dry_run=true&truncate=start", content=body, headers=NDJSON)
    assert answer.status_code == 202
    job_id = answer.json()["id"]
    assert client.get(f"/v1/jobs/{job_id}?wait=30").json()["status"] == "succeeded"

    def estimated() -> Any:
        found = client.get(f"/v1/jobs/{job_id}").json()["dry_run"]
        return found if found["seconds"] is not None else None

    found = wait_for(estimated, seconds=30, what="a report of the worker's speed")
    assert (found["inputs"], found["tokens"], found["duplicates"], found["over_long"]) == (100, 400, 70, 0)
    assert found["seconds"] >= 0
    assert found["backlog_seconds"] == 0


def test_dry_run_has_no_result(client: httpx.Client) -> None:
    job = run(client, "&dry_run=1", inputs=["a"])
    for path in ("result", "result?format=npy", "manifest"):
        answer = client.get(f"/v1/jobs/{job['id']}/{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "dry_run"), path
        assert "its figures are in its record" in answer.json()["error"]["message"]
    (listed,) = client.get("/v1/jobs?limit=1").json()["data"]
    assert (listed["id"], listed["dry_run"]["tokens"]) == (job["id"], 3)
    assert client.delete(f"/v1/jobs/{job['id']}").json()["deleted"]


def test_dry_run_takes_a_yes_or_a_no(client: httpx.Client) -> None:
    assert "dry_run" not in run(client, "&dry_run=0", inputs=["a"])
    answer = client.post("/v1/jobs?dry_run=maybe", json={"inputs": ["a"]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "dry_run")
