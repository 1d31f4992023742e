"""The API and a real Celery worker with the fake engine, over one Redis."""

import io
import json
import threading
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import psutil
import pytest

from launcher.redis_server import RedisServer
from tests.conftest import QUICK
from tests.fakes import DIMENSIONS, vector_of
from tests.processes import Process, Stack, running_stack

pytestmark = pytest.mark.integration

NDJSON = {"Content-Type": "application/x-ndjson"}
MANY = 200_000
MOST_GROWTH_BYTES = 30 * 2**20


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("end-to-end")
    with RedisServer(folder / "redis", {"appendfsync": "no"}) as server:
        for found in running_stack(server.url, folder, QUICK):
            found.api()
            found.worker(BATCH_SIZE="256")
            yield found


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.base_url, timeout=100) as found:
        yield found


def text_of(index: int) -> str:
    return f"short text {index}"


def test_post_with_wait_answers_with_the_vectors(client: httpx.Client) -> None:
    answer = client.post("/v1/jobs?wait=30", json={"inputs": ["a", {"id": "x", "text": "b"}], "priority": "interactive"})
    assert answer.status_code == 200
    body = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{body['id']}"
    assert (body["object"], body["status"], body["counts"]["done"]) == ("job", "succeeded", 2)
    assert body["data"] == [
        {"index": 0, "id": None, "embedding": body["data"][0]["embedding"], "tokens": 3, "truncated": False},
        {"index": 1, "id": "x", "embedding": body["data"][1]["embedding"], "tokens": 3, "truncated": False},
    ]
    for item, text in zip(body["data"], "ab", strict=True):
        np.testing.assert_allclose(item["embedding"], vector_of(text), rtol=1e-6)
    assert client.get(f"/v1/jobs/{body['id']}/result").json()["data"] == body["data"]


def test_stream_with_wait_answers_with_the_vectors(client: httpx.Client) -> None:
    lines = b"".join(json.dumps(text_of(n)).encode() + b"\n" for n in range(1000))
    body = client.post("/v1/jobs?wait=30&dimensions=4", content=lines, headers=NDJSON).json()
    assert body["status"] == "succeeded"
    assert [item["index"] for item in body["data"]] == list(range(1000))
    for item in body["data"]:
        expected = vector_of(text_of(item["index"]))[:4]
        np.testing.assert_allclose(item["embedding"], expected / np.linalg.norm(expected), rtol=1e-5)


def test_inputs_that_fail_alone_are_told_with_the_rest(client: httpx.Client) -> None:
    body = client.post("/v1/jobs?wait=30", json={"inputs": ["fine", "word " * 300], "truncate": "error"}).json()
    assert (body["status"], body["counts"]) == ("succeeded", {"total": 2, "done": 1, "failed": 1})
    assert body["data"][1]["error"]["code"] == "text_too_long"
    assert "word" not in body["errors"][0]["message"]
    assert [error["index"] for error in body["errors"]] == [1]


def test_job_is_followed_to_its_end_by_reading_its_result(client: httpx.Client) -> None:
    """What a client does that wants the vectors as they come: read on where the last page ended."""
    lines = b"".join(json.dumps(text_of(n)).encode() + b"\n" for n in range(20_000))
    job_id = client.post("/v1/jobs", content=lines, headers=NDJSON).json()["id"]
    offset, rows = 0, []
    while offset is not None:
        page = client.get(f"/v1/jobs/{job_id}/result?format=base64&offset={offset}").json()
        rows += [item["index"] for item in page["data"]]
        if page["next_offset"] == offset:
            client.get(f"/v1/jobs/{job_id}?wait=0.2")
        offset = page["next_offset"]
    assert rows == list(range(20_000))


def test_queues_show_the_worker(client: httpx.Client) -> None:
    cpu = client.get("/v1/queues").json()["data"][0]
    assert [(worker["engine"], worker["device"], worker["dimensions"]) for worker in cpu["workers"]] == [
        ("fake", "cpu", DIMENSIONS)
    ]
    assert client.get("/readyz").json()["queues"]["cpu"] == [cpu["workers"][0]["name"]]


class Memory:
    """The most memory that the API's server process holds while something happens."""

    def __init__(self, api: Process) -> None:
        (self._server,) = psutil.Process(api.pid).children()
        self.before = self._resident()
        self.most = self.before
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _resident(self) -> int:
        return int(self._server.memory_info().rss)

    def _watch(self) -> None:
        while not self._ended.wait(0.01):
            self.most = max(self.most, self._resident())

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def growth(self) -> int:
        return self.most - self.before

    def __str__(self) -> str:
        return f"{self.before / 2**20:.1f} MB before, {self.most / 2**20:.1f} MB at most"


def test_two_hundred_thousand_texts_pass_through_little_memory(
    stack: Stack, client: httpx.Client, record_property: Callable[[str, object], None]
) -> None:
    def lines() -> Iterator[bytes]:
        for first in range(0, MANY, 1000):
            yield b"".join(json.dumps(text_of(n)).encode() + b"\n" for n in range(first, first + 1000))

    expected = [vector_of(text_of(n)).tobytes() for n in range(MANY)]
    api = stack.started[0]
    with Memory(api) as memory:
        answer = client.post("/v1/jobs?normalize=false", content=lines(), headers=NDJSON)
        assert answer.status_code == 202, answer.text
        job_id = answer.json()["id"]
        while (record := client.get(f"/v1/jobs/{job_id}?wait=30").json())["status"] in ("queued", "running"):
            pass
        assert (record["status"], record["counts"]) == ("succeeded", {"total": MANY, "done": MANY, "failed": 0})
        index = 0
        with client.stream("GET", f"/v1/jobs/{job_id}/result?format=ndjson") as result:
            for index, line in enumerate(result.iter_lines()):
                item = json.loads(line)
                assert item["index"] == index
                assert np.array(item["embedding"], dtype=np.float32).tobytes() == expected[index]
        assert index == MANY - 1
        array = np.load(io.BytesIO(client.get(f"/v1/jobs/{job_id}/result?format=npy").content))
        assert array.shape == (MANY, DIMENSIONS)
        assert array.tobytes() == b"".join(expected)
        with client.stream("GET", f"/v1/jobs/{job_id}/result") as result:
            assert sum(piece.count(b'"embedding"') for piece in result.iter_bytes()) >= MANY - 100, "some are cut in two"
    print(memory)
    record_property("memory", str(memory))
    assert memory.growth < MOST_GROWTH_BYTES, memory
