"""Read results: every format, in pages, while the job runs, after it was cancelled."""

import base64
import io
import json
from typing import Any

import httpx
import numpy as np
import pytest

from core.ledger import Ledger
from tests.fakes import DIMENSIONS, vector_of
from tests.integration.test_api_requests import error_of
from tests.ledger_driver import REASON, Driver

pytestmark = pytest.mark.integration

TEXTS = [f"text number {n}" for n in range(10)]
FORMATS = ["json", "base64", "ndjson", "npy"]


@pytest.fixture(scope="module")
def api_environ() -> dict[str, str]:
    return {"SHARD_INPUTS": "3"}


def new_job(api: httpx.Client, **options: Any) -> str:
    """A job of ten inputs in shards of 3, 3, 3 and 1; every other input has an id."""
    inputs = [{"id": f"id {n}", "text": text} if n % 2 else text for n, text in enumerate(TEXTS)]
    answer = api.post("/v1/jobs", json={"inputs": inputs} | options)
    assert answer.status_code == 202
    return answer.json()["id"]


class Read:
    """A page as any of the formats tells it."""

    def __init__(self, answer: httpx.Response, chosen: str) -> None:
        assert answer.status_code == 200, answer.text
        headers = answer.headers
        self.answer = answer
        self.count = int(headers["x-vector-count"])
        self.total = int(headers["x-vector-total"])
        self.ready = int(headers["x-vector-ready"])
        self.next_offset = int(headers["x-next-offset"]) if "x-next-offset" in headers else None
        self.status = headers["x-job-status"]
        self.vectors = getattr(self, f"read_{chosen}")()

    def read_npy(self) -> dict[int, Any]:
        assert self.answer.headers["content-type"] == "application/x-npy"
        assert int(self.answer.headers["content-length"]) == len(self.answer.content)
        array = np.load(io.BytesIO(self.answer.content))
        assert array.dtype == np.dtype("<f4")
        assert array.flags.c_contiguous
        assert array.shape == (self.count, DIMENSIONS)
        offset = int(self.answer.request.url.params.get("offset", 0))
        return {offset + n: row for n, row in enumerate(array) if not np.isnan(row).any()}

    def read_ndjson(self) -> dict[int, Any]:
        assert self.answer.headers["content-type"] == "application/x-ndjson"
        assert self.answer.content.endswith(b"\n") or not self.count
        return self.of_items([json.loads(line) for line in self.answer.content.splitlines()])

    def read_json(self) -> dict[int, Any]:
        page = self.check_page()
        return self.of_items(page["data"])

    def read_base64(self) -> dict[int, Any]:
        page = self.check_page()
        for item in page["data"]:
            if "embedding" in item:
                item["embedding"] = np.frombuffer(base64.b64decode(item["embedding"], validate=True), dtype="<f4")
        return self.of_items(page["data"])

    def check_page(self) -> dict[str, Any]:
        assert self.answer.headers["content-type"] == "application/json"
        page = self.answer.json()
        assert list(page)[-1] == "data"
        assert page["object"] == "list"
        assert page["job"] in str(self.answer.request.url)
        told = (page["status"], page["count"], page["total"], page["next_offset"], page["ready"])
        assert told == (self.status, self.count, self.total, self.next_offset, self.ready)
        ended = self.status in ("succeeded", "failed", "cancelled")
        assert page["complete"] == (ended and page["offset"] + self.count == self.total)
        return page

    def of_items(self, items: list[dict[str, Any]]) -> dict[int, Any]:
        assert len(items) == self.count
        offset = int(self.answer.request.url.params.get("offset", 0))
        vectors = {}
        for index, item in enumerate(items, start=offset):
            assert item["index"] == index
            assert item["id"] == (f"id {index}" if index % 2 else None)
            if "error" in item:
                assert set(item) == {"index", "id", "error"}
                assert item["error"] == {"code": "text_too_long", "message": REASON, "retryable": False}
            else:
                assert set(item) == {"index", "id", "embedding", "tokens", "truncated"}
                assert item["tokens"] == 5
                assert item["truncated"] is (index % 3 == 0)
                vectors[index] = np.array(item["embedding"], dtype=np.float32)
        return vectors


def read(api: httpx.Client, job_id: str, chosen: str, **query: int) -> Read:
    return Read(api.get(f"/v1/jobs/{job_id}/result", params={"format": chosen} | query), chosen)


def assert_right(vectors: dict[int, Any], indices: list[int]) -> None:
    assert sorted(vectors) == indices
    for index, vector in vectors.items():
        assert vector.tobytes() == vector_of(TEXTS[index]).tobytes(), "every bit of every number"


@pytest.mark.parametrize("chosen", FORMATS)
def test_finished_job_is_read_whole(api: httpx.Client, driver: Driver, chosen: str) -> None:
    job_id = new_job(api)
    driver.work_all()
    page = read(api, job_id, chosen)
    assert (page.count, page.total, page.ready, page.next_offset, page.status) == (10, 10, 10, None, "succeeded")
    assert_right(page.vectors, list(range(10)))


@pytest.mark.parametrize("chosen", FORMATS)
def test_failed_inputs_have_a_reason_instead_of_a_vector(api: httpx.Client, driver: Driver, chosen: str) -> None:
    job_id = new_job(api)
    driver.work_all(failed={2, 3, 9})
    page = read(api, job_id, chosen)
    assert (page.count, page.status) == (10, "succeeded")
    assert_right(page.vectors, [0, 1, 4, 5, 6, 7, 8])
    record = api.get(f"/v1/jobs/{job_id}").json()
    assert record["counts"] == {"total": 10, "done": 7, "failed": 3}
    assert sorted(error["index"] for error in record["errors"]) == [2, 3, 9]
    assert record["errors"][0] == {"index": 2, "code": "text_too_long", "message": REASON, "retryable": False}


@pytest.mark.parametrize("chosen", FORMATS)
@pytest.mark.parametrize("limit", [1, 2, 3, 4, 7, 10, 1000])
def test_pages_of_any_size_make_the_whole(api: httpx.Client, driver: Driver, chosen: str, limit: int) -> None:
    job_id = new_job(api)
    driver.work_all(failed={4})
    vectors: dict[int, Any] = {}
    offset: int | None = 0
    while offset is not None:
        page = read(api, job_id, chosen, offset=offset, limit=limit)
        assert page.count == min(limit, 10 - offset)
        assert page.ready == 10
        vectors |= page.vectors
        offset = page.next_offset
    assert_right(vectors, [0, 1, 2, 3, 5, 6, 7, 8, 9])


@pytest.mark.parametrize("chosen", FORMATS)
def test_running_job_is_read_up_to_the_first_input_that_is_missing(api: httpx.Client, driver: Driver, chosen: str) -> None:
    job_id = new_job(api)
    first, second, third = (driver.claim().shards[0] for _ in range(3))
    driver.commit(third)  # out of order: inputs 6 to 8
    if chosen != "npy":
        page = read(api, job_id, chosen)
        assert (page.count, page.ready, page.next_offset, page.status) == (0, 0, 0, "running")
        assert page.answer.headers["retry-after"] == "1"
    page = read(api, job_id, chosen, offset=7)
    assert (page.count, page.ready, page.next_offset) == (2, 9, 9)
    assert_right(page.vectors, [7, 8])
    driver.commit(first)
    page = read(api, job_id, chosen)
    assert (page.count, page.ready, page.next_offset) == (3, 3, 3)
    assert_right(page.vectors, [0, 1, 2])
    page = read(api, job_id, chosen, offset=1, limit=1)
    assert (page.count, page.ready, page.next_offset) == (1, 3, 2)
    driver.commit(second)
    page = read(api, job_id, chosen, offset=2, limit=6)
    assert (page.count, page.ready, page.next_offset, page.status) == (6, 9, 8, "running")
    assert_right(page.vectors, [2, 3, 4, 5, 6, 7])
    driver.work_all()
    page = read(api, job_id, chosen, offset=9)
    assert (page.count, page.next_offset, page.status) == (1, None, "succeeded")


def test_waiting_job_has_nothing_to_read_yet(api: httpx.Client) -> None:
    job_id = new_job(api)
    for chosen in ("json", "base64", "ndjson"):
        page = read(api, job_id, chosen)
        assert (page.count, page.total, page.ready, page.next_offset, page.status) == (0, 10, 0, 0, "queued")
        assert page.answer.headers["retry-after"] == "1"
    answer = api.get(f"/v1/jobs/{job_id}/result?format=npy")
    assert "nothing of the job is finished yet" in error_of(answer, 409, code="job_not_ready")
    assert answer.headers["retry-after"] == "1"
    assert "x-should-retry" not in answer.headers


@pytest.mark.parametrize("chosen", FORMATS)
def test_offset_at_the_end_is_an_empty_page_and_beyond_it_an_error(api: httpx.Client, driver: Driver, chosen: str) -> None:
    job_id = new_job(api)
    driver.work_all()
    page = read(api, job_id, chosen, offset=10)
    assert (page.count, page.next_offset) == (0, None)
    assert "retry-after" not in page.answer.headers
    answer = api.get(f"/v1/jobs/{job_id}/result?offset=11&format={chosen}")
    assert "offset must be at most 10, the job's number of inputs, got 11" in error_of(answer, 400, "offset")


@pytest.mark.parametrize("chosen", FORMATS)
def test_cancelled_job_keeps_what_was_finished(api: httpx.Client, driver: Driver, chosen: str) -> None:
    job_id = new_job(api)
    first, _, third = (driver.claim().shards[0] for _ in range(3))
    driver.commit(first)
    driver.commit(third)
    assert api.delete(f"/v1/jobs/{job_id}").json()["status"] == "cancelled"
    page = read(api, job_id, chosen)
    assert (page.count, page.ready, page.next_offset, page.status) == (3, 3, 6, "cancelled")
    page = read(api, job_id, chosen, offset=6)
    assert (page.count, page.ready, page.next_offset) == (3, 9, None)
    assert_right(page.vectors, [6, 7, 8])
    page = read(api, job_id, chosen, offset=4)
    assert (page.count, page.ready, page.next_offset) == (0, 4, 6)
    assert "retry-after" not in page.answer.headers


ACCEPTS = [
    (None, "application/json"),
    ("*/*", "application/json"),
    ("application/json", "application/json"),
    ("application/x-ndjson", "application/x-ndjson"),
    ("application/x-npy", "application/x-npy"),
    ("application/octet-stream", "application/x-npy"),
    ("text/html, application/x-ndjson;q=0.5", "application/x-ndjson"),
    ("text/html,application/xhtml+xml,*/*;q=0.8", "application/json"),
    ("application/json;q=0.1, application/x-npy", "application/x-npy"),
]


@pytest.mark.parametrize(("accept", "media_type"), ACCEPTS)
def test_accept_chooses_the_format(api: httpx.Client, driver: Driver, accept: str | None, media_type: str) -> None:
    job_id = new_job(api)
    driver.work_all()
    request = api.build_request("GET", f"/v1/jobs/{job_id}/result")
    del request.headers["accept"]
    if accept:
        request.headers["accept"] = accept
    assert api.send(request).headers["content-type"] == media_type
    asked = api.get(f"/v1/jobs/{job_id}/result?format=npy", headers={"Accept": accept or ""})
    assert asked.headers["content-type"] == "application/x-npy", "format= goes before Accept"


@pytest.mark.parametrize("accept", ["text/html", "image/*", "application/json;q=0"])
def test_accept_of_other_types_alone_is_refused(api: httpx.Client, driver: Driver, accept: str) -> None:
    job_id = new_job(api)
    driver.work_all()
    answer = api.get(f"/v1/jobs/{job_id}/result", headers={"Accept": accept})
    assert "application/x-ndjson" in error_of(answer, 406, code="not_acceptable")


def test_result_goes_with_its_job(api: httpx.Client, driver: Driver) -> None:
    job_id = new_job(api)
    driver.work_all()
    assert api.delete(f"/v1/jobs/{job_id}").json() == {"id": job_id, "object": "job", "deleted": True}
    error_of(api.get(f"/v1/jobs/{job_id}/result"), 404, code="job_not_found")


def test_job_deleted_while_its_result_is_sent_cuts_the_connection(api: httpx.Client, driver: Driver) -> None:
    """No client may take half a result for a whole one."""
    lines = "\n".join(f'{{"id": "{"x" * 250}", "text": "{n}"}}' for n in range(21_000))  # more than sockets hold
    answer = api.post("/v1/jobs", content=lines.encode(), headers={"Content-Type": "application/x-ndjson"})
    job_id = answer.json()["id"]
    assert driver.work_all() == 7_000
    for chosen in ("ndjson", "json"):
        with api.stream("GET", f"/v1/jobs/{job_id}/result?format={chosen}") as result:
            pieces = result.iter_raw(1024)
            next(pieces)
            if chosen == "ndjson":
                continue  # a client that goes away in the middle harms nothing
            api.delete(f"/v1/jobs/{job_id}")
            with pytest.raises(httpx.RemoteProtocolError):
                for _ in pieces:
                    pass


def test_every_format_tells_the_same_numbers(api: httpx.Client, driver: Driver, api_ledger: Ledger) -> None:
    """Decimals in JSON read back as the very float32 that the worker stored."""
    job_id = new_job(api)
    driver.work_all()
    stored = b"".join(api_ledger.result(job_id, span).vectors for span in api_ledger.finished(job_id))
    for chosen in FORMATS:
        vectors = read(api, job_id, chosen).vectors
        assert b"".join(vectors[n].tobytes() for n in range(10)) == stored


def test_head_tells_how_much_there_is(api: httpx.Client, driver: Driver) -> None:
    job_id = new_job(api)
    driver.work_all()
    url = f"/v1/jobs/{job_id}/result?format=npy"
    head = api.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["x-vector-count"] == "10"
    assert int(head.headers["content-length"]) == len(api.get(url).content)
