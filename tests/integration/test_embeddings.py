"""`/v1/embeddings` as OpenAI's own client uses it, unmodified, and what that client does not show. The engine is a fake."""

import base64
import io
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import redis

from core.keys import digest_of
from core.ledger import Ledger, connect
from launcher.redis_server import RedisServer
from tests.conftest import QUICK
from tests.fakes import DIMENSIONS, MAX_TOKENS, vector_of
from tests.integration.test_api_requests import error_of
from tests.ledger_driver import Driver
from tests.processes import ROOT, Stack, running_stack, wait_for

pytestmark = pytest.mark.integration

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
KEYS = {"alice": "va_alice", "bob": "va_bob", "carol": "va_carol"}
LONG = "word " * (MAX_TOKENS + 50)

API = {"API_THREADS": "8", "TOKEN_ENCODING": "utf8_bytes", "PYTHONPATH": str(ROOT / "tests" / "encodings")}
PLACES = 4
"""Requests that may wait for their vectors: half of the threads."""

HASTY = {"EMBEDDINGS_WAIT_SECONDS": "1", "MAX_TENANT_INPUTS_PER_MINUTE": "60", "MAX_BODY_BYTES": "4000"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two APIs and a worker of the queue cpu. Nobody works on gpu, so that its jobs wait."""
    folder = tmp_path_factory.mktemp("embeddings")
    keys = folder / "keys"
    keys.write_text("".join(f"{name}:{digest_of(key)}\n" for name, key in KEYS.items()))
    with RedisServer(folder / "redis", {"appendfsync": "no"}) as server:
        for found in running_stack(server.url, folder, QUICK | {"API_KEYS_FILE": str(keys)}):
            found.worker()
            yield found


@pytest.fixture(scope="module")
def url(stack: Stack) -> str:
    stack.api(**API)
    return stack.base_url


@pytest.fixture(scope="module")
def hasty_url(stack: Stack) -> str:
    """An API that has little patience and many limits."""
    stack.api(**HASTY)
    return stack.base_url


@pytest.fixture
def ledger(stack: Stack) -> Ledger:
    return Ledger(connect(stack.redis_url, timeout_seconds=5, retries=2), "vector-api:")


def sdk(url: str, tenant: str = "alice", **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEYS.get(tenant, tenant), **({"max_retries": 0} | options))


def http(url: str, tenant: str = "alice") -> httpx.Client:
    return httpx.Client(base_url=url, timeout=60, headers={"Authorization": f"Bearer {KEYS[tenant]}"})


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with sdk(url) as found:
        yield found


@pytest.fixture
def raw(url: str) -> Iterator[httpx.Client]:
    with http(url) as found:
        yield found


def keys_of_jobs(stack: Stack) -> set[bytes]:
    """What is in Redis for the sake of jobs: everything but counters, and what workers say of themselves and to each other."""
    others = (
        b"version",
        b"worker",
        b"draining",
        b"wake",
        b"waiting",
        b"counters",
        b"celery",
        b"moving",
        b"rate",
        b"idempotency",
        b"throughput",
    )
    with redis.Redis.from_url(stack.redis_url) as server:
        names = {name.removeprefix(b"vector-api:") for name in server.scan_iter(count=1000)}
    return {name for name in names if not name.startswith(others)}


def floats(vectors: Any) -> bytes:
    return np.array(vectors, dtype="<f4").tobytes()


def assert_vectors(answer: Any, *texts: str) -> None:
    """The answer holds the vectors of these texts. A worker scales them once more, which moves the last bit."""
    np.testing.assert_allclose([item.embedding for item in answer.data], [vector_of(text) for text in texts], rtol=1e-6)


# Vectors ----------------------------------------------------------------------------------------------------------------


def test_official_client_reads_its_vectors(client: openai.OpenAI) -> None:
    one = client.embeddings.create(model=MODEL, input="a text")
    assert (one.object, one.model, one.usage.prompt_tokens, one.usage.total_tokens) == ("list", MODEL, 4, 4)
    assert [(item.object, item.index) for item in one.data] == [("embedding", 0)]
    assert_vectors(one, "a text")
    assert not one.model_extra, "exactly OpenAI's fields"
    for options in ({}, {"encoding_format": "float"}, {"user": "me"}):
        two = client.embeddings.create(model=MODEL, input=["a", "b c"], **options)
        assert_vectors(two, "a", "b c")
        assert two.usage.prompt_tokens == 3 + 4
    text = client.embeddings.create(model=MODEL, input="a", encoding_format="base64").data[0].embedding
    assert base64.b64decode(str(text)) == floats(two.data[0].embedding)


def test_async_client_reads_its_vectors(url: str) -> None:
    import asyncio

    async def embed() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEYS["alice"], max_retries=10) as client:
            return await asyncio.gather(*[client.embeddings.create(model=MODEL, input=f"text {n}") for n in range(20)])

    for n, answer in enumerate(asyncio.run(embed())):
        assert_vectors(answer, f"text {n}")


@pytest.mark.parametrize("options", [{}, {"dimensions": 3}, {"prompt_name": "query"}], ids=str)
def test_vectors_are_those_of_a_job_to_the_bit(client: openai.OpenAI, raw: httpx.Client, options: dict[str, Any]) -> None:
    texts = [f"text {n} of many" for n in range(700)]  # three shards
    job = raw.post("/v1/jobs?wait=30", json={"inputs": texts} | options).json()
    wanted = np.load(io.BytesIO(raw.get(f"{job['links']['result']}?format=npy").content))
    raw.delete(job["links"]["self"])
    for encoding_format in ("float", "base64"):
        body = {"input": texts, "model": MODEL, "encoding_format": encoding_format} | options
        answer = client.post("/embeddings", body=body, cast_to=openai.types.CreateEmbeddingResponse)
        found = [item.embedding for item in answer.data]
        if encoding_format == "base64":
            found = [np.frombuffer(base64.b64decode(str(text)), dtype="<f4") for text in found]
        assert floats(found) == wanted.tobytes()
        assert [item.index for item in answer.data] == list(range(700))
    if "dimensions" in options:
        np.testing.assert_allclose(np.linalg.norm(wanted, axis=1), 1, atol=1e-6)


def test_inputs_that_were_cut_are_told(raw: httpx.Client) -> None:
    answer = raw.post("/v1/embeddings", json={"input": ["a", LONG, "b"]})
    assert answer.headers["x-truncated-inputs"] == "1"
    body = answer.json()
    assert body["truncated"] == [1]
    assert body["usage"] == {"prompt_tokens": 3 + MAX_TOKENS + 3, "total_tokens": 3 + MAX_TOKENS + 3}
    whole = raw.post("/v1/embeddings", json={"input": "a"})
    assert (whole.headers["x-truncated-inputs"], "truncated" in whole.json()) == ("0", False)


def test_token_ids_are_read_in_the_encoding_that_is_set(client: openai.OpenAI, raw: httpx.Client) -> None:
    texts = ["a text", "häßlich 🙂"]
    ids = [list(text.encode()) for text in texts]
    answer = client.embeddings.create(model=MODEL, input=ids)
    assert_vectors(answer, *texts)
    assert_vectors(client.embeddings.create(model=MODEL, input=ids[0]), texts[0])
    assert_vectors(client.embeddings.create(model=MODEL, input=[ids[1][:-1]]), "häßlich \ufffd")
    for number in (257, -1, 2**40):
        message = error_of(raw.post("/v1/embeddings", json={"input": [ids[0], [1, number]]}), 400, "input[1]")
        assert "a number that is no token id of the encoding utf8_bytes" in message


def test_nothing_is_left_behind(client: openai.OpenAI, stack: Stack) -> None:
    wait_for(lambda: not keys_of_jobs(stack), what="an empty ledger")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: client.embeddings.create(model=MODEL, input=[f"{n}", "b"]), range(60)))
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model=MODEL, input=LONG, extra_body={"truncate": "error"})
    wait_for(lambda: not keys_of_jobs(stack), what="an empty ledger")


# Headers ----------------------------------------------------------------------------------------------------------------


def test_headers_tell_request_and_time(client: openai.OpenAI, raw: httpx.Client) -> None:
    answer = client.embeddings.with_raw_response.create(model=MODEL, input="a", extra_headers={"x-request-id": "mine-7"})
    assert answer.headers["x-request-id"] == answer.parse()._request_id == "mine-7"  # type: ignore[attr-defined]
    assert int(answer.headers["openai-processing-ms"]) >= 0
    assert answer.headers["content-length"]
    refused = raw.post("/v1/embeddings", json={"input": ""})
    assert refused.headers["x-request-id"]
    assert int(refused.headers["openai-processing-ms"]) >= 0


def test_log_names_the_request(raw: httpx.Client, stack: Stack) -> None:
    answer = raw.post("/v1/embeddings", json={"input": "RAISE"}, headers={"x-request-id": "to-be-found"})
    assert answer.status_code == 500
    line = wait_for(lambda: next((line for found in stack.started for line in found.lines() if line.get("status") == 500), None))
    assert line["message"].startswith("POST /v1/embeddings answered 500")
    assert line["request_id"] == "to-be-found"


# Errors -----------------------------------------------------------------------------------------------------------------


def test_error_classes_of_the_official_client(client: openai.OpenAI, url: str) -> None:
    def raised(kind: type[openai.APIStatusError], found: openai.OpenAI = client, **options: Any) -> openai.APIStatusError:
        with pytest.raises(kind) as error:
            found.embeddings.create(**({"model": MODEL, "input": "a"} | options))
        assert error.value.response.headers["x-should-retry"] == "false"
        return error.value

    empty = raised(openai.BadRequestError, input=["a", ""])
    assert (empty.param, empty.code, empty.type) == ("input[1]", "invalid_request", "invalid_request_error")
    too_long = raised(openai.BadRequestError, input=["a", LONG], extra_body={"truncate": "error"})
    assert (too_long.param, too_long.code) == ("input[1]", "context_length_exceeded")
    assert f"input[1] has no vector: the text has more tokens than the model's maximum of {MAX_TOKENS}" in too_long.message
    assert raised(openai.BadRequestError, dimensions=DIMENSIONS + 1).param == "dimensions"
    assert raised(openai.BadRequestError, extra_body={"prompt_name": "none"}).param == "prompt_name"
    assert raised(openai.NotFoundError, model="text-embedding-3-small").code == "model_not_found"
    with sdk(url, "va_nobody", max_retries=2) as stranger:
        assert raised(openai.AuthenticationError, stranger).code == "invalid_api_key"
    broken = raised(openai.InternalServerError, input=["a", "b", "RAISE"])
    assert (broken.param, broken.code, broken.type) == ("input[2]", "embedding_failed", "server_error")


def test_other_bodies_and_methods_are_refused(raw: httpx.Client) -> None:
    error_of(raw.get("/v1/embeddings"), 405)
    error_of(raw.post("/v1/embeddings?wait=3", json={"input": "a"}), 400, "wait")
    error_of(raw.post("/v1/embeddings", content=b'"a"', headers={"Content-Type": "application/x-ndjson"}), 415)
    error_of(raw.post("/v1/embeddings", content=b"{", headers={"Content-Type": "application/json"}), 400)
    error_of(raw.post("/v1/embeddings", json={"input": "a"}, headers={"Idempotency-Key": ""}), 400, "Idempotency-Key")


def test_body_over_its_limit_is_refused(hasty_url: str) -> None:
    with sdk(hasty_url, max_retries=2) as client, pytest.raises(openai.APIStatusError) as error:
        client.embeddings.create(model=MODEL, input="a" * 5000)
    assert (error.value.status_code, error.value.code) == (413, "request_too_large")


def test_client_waits_as_long_as_a_limit_says_and_succeeds(hasty_url: str) -> None:
    with sdk(hasty_url, "bob") as client:
        first = client.embeddings.with_raw_response.create(model=MODEL, input=["a"] * 60)
        assert [first.headers[f"x-ratelimit-{what}-inputs"] for what in ("limit", "remaining")] == ["60", "0"]
        with pytest.raises(openai.RateLimitError) as error:
            client.embeddings.create(model=MODEL, input=["b"] * 2)
        assert error.value.code == "rate_limit_exceeded"
        assert 1 <= int(error.value.response.headers["retry-after"]) <= 2
    with sdk(hasty_url, "bob", max_retries=3) as client:
        answer = client.embeddings.with_raw_response.create(model=MODEL, input=["b"] * 2)
        assert answer.retries_taken >= 1


# Waiting ----------------------------------------------------------------------------------------------------------------


def live_jobs(ledger: Ledger, tenant: str) -> list[str]:
    return [job.id for job in ledger.jobs(tenant)[0] if not job.status.ended]


def test_wait_that_runs_out_cancels_the_work_without_a_key(hasty_url: str, ledger: Ledger, stack: Stack) -> None:
    with http(hasty_url, "carol") as client:
        answer = client.post("/v1/embeddings", json={"input": "a", "queue": "gpu"})
    message = error_of(answer, 503, code="not_in_time")
    assert "the vectors did not come within 1 s (EMBEDDINGS_WAIT_SECONDS), and no worker of the queue gpu lives" in message
    assert "the work was cancelled" in message
    assert 1 <= int(answer.headers["retry-after"]) <= 120
    assert "x-should-retry" not in answer.headers
    assert ledger.jobs("carol") == ([], False), "it is gone when the client hears of it"


def test_wait_that_runs_out_finds_its_work_again_with_a_key(hasty_url: str, ledger: Ledger, stack: Stack) -> None:
    """The client asks again by itself, as it is told; what it sent once is embedded once."""
    again = {"Idempotency-Key": "the same"}
    with sdk(hasty_url, "carol", max_retries=4) as client, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(
            client.embeddings.with_raw_response.create,
            model=MODEL,
            input=["a", "b"],
            extra_body={"queue": "gpu"},
            extra_headers=again,
        )
        (job_id,) = wait_for(lambda: live_jobs(ledger, "carol"), what="the job")
        wait_for(lambda: "the work goes on" in "".join(found.output() for found in stack.started), what="the first 503")
        assert Driver(ledger, "gpu").work_all() == 1
        answer = asked.result(timeout=60)
        assert answer.retries_taken >= 1
        assert answer.headers["idempotent-replayed"] == "true"
        assert_vectors(answer.parse(), "a", "b")
        with pytest.raises(openai.ConflictError) as error:
            client.embeddings.create(model=MODEL, input="other", extra_headers=again)
        assert (error.value.code, error.value.response.headers["x-should-retry"]) == ("idempotency_conflict", "false")
    job = ledger.get(job_id, "carol")
    assert job.expires_at is not None
    assert job.ended_at is not None
    assert job.expires_at - job.ended_at == 600
    ledger.remove(job_id, "carol")


def connected(url: str, headers: dict[str, str] | None = None) -> socket.socket:
    """A client that has asked for vectors of the queue gpu."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"input": "a", "queue": "gpu"})
    lines = {"Host": host, "Authorization": f"Bearer {KEYS['alice']}", "Content-Type": "application/json"} | (headers or {})
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.sendall(f"POST /v1/embeddings HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    return connection


@pytest.mark.parametrize("abruptly", [False, True], ids=["closed", "reset"])
def test_client_that_goes_takes_its_work_along(url: str, ledger: Ledger, stack: Stack, abruptly: bool) -> None:
    connection = connected(url)
    wait_for(lambda: live_jobs(ledger, "alice"), what="the job")
    if abruptly:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    connection.close()
    wait_for(lambda: not keys_of_jobs(stack), seconds=10, what="an empty ledger")
    assert ledger.waiting_inputs() == 0


def test_too_many_that_wait_are_told_and_who_goes_makes_room(url: str, ledger: Ledger, raw: httpx.Client) -> None:
    """Clients with an idempotency key: their work goes on without them, but a place is free again."""
    waiting = [connected(url, {"Idempotency-Key": f"key {n}"}) for n in range(PLACES)]
    wait_for(lambda: len(live_jobs(ledger, "alice")) == PLACES, what="the jobs")
    answer = raw.post("/v1/embeddings", json={"input": "a"})
    assert f"{PLACES} requests that wait for a job" in error_of(answer, 429, code="too_many_at_once")
    assert 1 <= int(answer.headers["retry-after"]) <= 120
    assert raw.get("/v1/jobs").status_code == 200, "other requests are answered"
    for connection in waiting:
        connection.close()
    wait_for(lambda: raw.post("/v1/embeddings", json={"input": "a"}).status_code == 200, seconds=10, what="a free place")
    assert len(live_jobs(ledger, "alice")) == PLACES
    ledger.drop([(job_id, "alice") for job_id in live_jobs(ledger, "alice")])


def test_api_that_is_stopped_answers_those_who_wait(stack: Stack, ledger: Ledger) -> None:
    api = stack.api()
    answers: list[httpx.Response] = []
    with http(stack.base_url) as client:
        asking = threading.Thread(
            target=lambda: answers.append(client.post("/v1/embeddings", json={"input": "a", "queue": "gpu"}))
        )
        asking.start()
        wait_for(lambda: live_jobs(ledger, "alice"), what="the job")
        assert api.stop() == 0
        asking.join(10)
    assert "this API process is about to stop" in error_of(answers[0], 503, code="not_in_time")
    assert ledger.jobs("alice") == ([], False)


def test_cancelled_job_fails_its_request(url: str, ledger: Ledger, raw: httpx.Client) -> None:
    with ThreadPoolExecutor(1) as pool, http(url) as other:
        asked = pool.submit(other.post, "/v1/embeddings", json={"input": "a", "queue": "gpu"})
        (job_id,) = wait_for(lambda: live_jobs(ledger, "alice"), what="the job")
        assert raw.delete(f"/v1/jobs/{job_id}").json()["status"] == "cancelled"
        error_of(asked.result(timeout=10), 400, code="cancelled")


def test_failure_that_may_be_tried_again_is_not_kept_for_its_key(raw: httpx.Client, stack: Stack) -> None:
    for _ in range(2):
        answer = raw.post("/v1/embeddings", json={"input": "OOM:0 x"}, headers={"Idempotency-Key": "again"})
        error_of(answer, 500, code="out_of_memory")
        assert answer.headers["retry-after"] == "1"
        wait_for(lambda: not keys_of_jobs(stack), seconds=5, what="an empty ledger")
