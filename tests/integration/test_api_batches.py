"""Files and batches over plain HTTP: broken uploads, limits, ranges, repeated requests, lifetimes."""

import hashlib
import json
import re
import socket
import threading
from typing import Any

import httpx
import pytest
import redis

from tests.integration.test_api_requests import error_of
from tests.ledger_driver import Driver
from tests.processes import Stack, wait_for

pytestmark = pytest.mark.integration

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
MIB = 2**20
TIMES = ("created", "in_progress", "expires", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


@pytest.fixture(scope="module")
def api_environ() -> dict[str, str]:
    return {
        "SHARD_INPUTS": "4",
        "MAX_FILE_BYTES": str(3 * MIB),
        "MAX_FILES_BYTES": str(4 * MIB),
        "MAX_BATCH_INPUTS": "3000",
        "MAX_WAITING_INPUTS": "3000",
        "MAX_TTL_SECONDS": "7200",
    }


def lines_of(count: int, texts: int = 1, **body: Any) -> bytes:
    """So many lines of so many texts."""
    return b"".join(
        json.dumps(
            {
                "custom_id": f"n{n}",
                "method": "POST",
                "url": "/v1/embeddings",
                "body": {"model": MODEL, "input": [f"text {n} {m}" for m in range(texts)]} | body,
            }
        ).encode()
        + b"\n"
        for n in range(count)
    )


def send(api: httpx.Client, content: bytes = lines_of(3), *, name: str = "a.jsonl", **fields: str) -> httpx.Response:
    return api.post("/v1/files", files={"file": (name, content)}, data={"purpose": "batch"} | fields)


def ask(api: httpx.Client, file_id: str, *, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
    body = {"input_file_id": file_id, "endpoint": "/v1/embeddings", "completion_window": "24h"} | more
    return api.post("/v1/batches", json=body, headers=headers)


def batch_of(api: httpx.Client, content: bytes = lines_of(3)) -> dict[str, Any]:
    answer = ask(api, send(api, content).json()["id"])
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(answer: httpx.Response, status: int) -> dict[str, str | None]:
    """The error of an answer, in the one shape."""
    error_of(answer, status)
    found: dict[str, str | None] = answer.json()["error"]
    return found


def keys(stack: Stack) -> set[str]:
    with redis.Redis.from_url(stack.redis_url) as server:
        return {key.decode().removeprefix("vector-api:") for key in server.keys("vector-api:*") if b":celery:" not in key}


def test_upload_goes_through_in_pieces(api: httpx.Client, api_stack: Stack) -> None:
    content = bytes(range(256)) * (5 * MIB // 512)
    answer = send(api, content, name="ünï/../x.jsonl")
    assert answer.status_code == 200
    record = answer.json()
    assert record == {
        "id": record["id"],
        "object": "file",
        "bytes": len(content),
        "created_at": record["created_at"],
        "expires_at": record["created_at"] + 86_400,
        "filename": "ünï/../x.jsonl",
        "purpose": "batch",
        "status": "processed",
        "status_details": None,
    }
    found = api.get(f"/v1/files/{record['id']}/content")
    assert hashlib.sha256(found.content).digest() == hashlib.sha256(content).digest()
    assert int(found.headers["content-length"]) == len(content)
    assert found.headers["content-type"] == "application/octet-stream"


def test_purpose_may_come_after_the_file(api: httpx.Client) -> None:
    assert api.post("/v1/files", files=[("file", ("a", b"x")), ("purpose", (None, "batch"))]).status_code == 200


RANGES = {
    "bytes=0-0": (0, 1),
    "bytes=10-19": (10, 20),
    f"bytes={MIB - 1}-{MIB}": (MIB - 1, MIB + 1),
    "bytes=100-": (100, None),
    "bytes=-5": (-5, None),
}


def test_ranges_of_a_file(api: httpx.Client) -> None:
    content = bytes(range(251)) * 5000
    path = f"/v1/files/{send(api, content).json()['id']}/content"
    for header, (start, end) in RANGES.items():
        answer = api.get(path, headers={"Range": header})
        assert (answer.status_code, answer.content) == (206, content[start:end]), header
        first = start % len(content)
        assert answer.headers["content-range"] == f"bytes {first}-{first + len(answer.content) - 1}/{len(content)}"
    answer = api.get(path, headers={"Range": f"bytes={len(content)}-"})
    assert answer.headers["content-range"] == f"bytes */{len(content)}"
    refused(answer, 416)
    assert api.get(path, headers={"Range": "bytes=1-2", "If-Range": '"another"'}).content == content


def test_ranges_of_an_output_join_to_the_whole(api: httpx.Client, driver: Driver) -> None:
    batch = batch_of(api, lines_of(2500))
    driver.work_all()
    output = api.get(f"/v1/batches/{batch['id']}").json()["output_file_id"]
    path = f"/v1/files/{output}/content"
    size = api.get(f"/v1/files/{output}").json()["bytes"]
    parts = [api.get(path, headers={"Range": f"bytes={first}-{first + 70_000}"}).content for first in range(0, size, 70_001)]
    whole = api.get(path)
    assert b"".join(parts) == whole.content
    assert int(whole.headers["content-length"]) == size
    assert [json.loads(line)["custom_id"] for line in whole.text.splitlines()] == [f"n{n}" for n in range(2500)]


def test_range_asks_for_the_size_before_anybody_measured_it(api: httpx.Client, driver: Driver) -> None:
    batch = batch_of(api)
    driver.work_all()
    output = api.get(f"/v1/batches/{batch['id']}").json()["output_file_id"]
    tail = api.get(f"/v1/files/{output}/content", headers={"Range": "bytes=-20"})
    assert tail.status_code == 206
    assert api.get(f"/v1/files/{output}/content").content.endswith(tail.content)


BAD_UPLOADS: dict[str, tuple[dict[str, Any], int, str | None]] = {
    "no file": ({"files": {"purpose": (None, "batch")}}, 400, "file"),
    "no purpose": ({"files": {"file": ("a", b"x")}}, 400, "purpose"),
    "another purpose": ({"files": {"file": ("a", b"x")}, "data": {"purpose": "fine-tune"}}, 400, "purpose"),
    "empty": ({"files": {"file": ("a", b"")}, "data": {"purpose": "batch"}}, 400, "file"),
    "two files": ({"files": [("file", ("a", b"x")), ("file", ("b", b"y"))], "data": {"purpose": "batch"}}, 400, "file"),
    "file under another name": ({"files": {"data": ("a", b"x")}, "data": {"purpose": "batch"}}, 400, "file"),
    "unknown field": ({"files": {"file": ("a", b"x")}, "data": {"purpose": "batch", "colour": "red"}}, 400, "colour"),
    "long field": ({"files": {"file": ("a", b"x")}, "data": {"purpose": "b" * 600}}, 400, "purpose"),
    "no anchor": (
        {"files": {"file": ("a", b"x")}, "data": {"purpose": "batch", "expires_after[seconds]": "3600"}},
        400,
        "expires_after[anchor]",
    ),
    "too long a life": (
        {
            "files": {"file": ("a", b"x")},
            "data": {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "7201"},
        },
        400,
        "expires_after[seconds]",
    ),
    "too large": ({"files": {"file": ("a", b"x" * (3 * MIB + 1))}, "data": {"purpose": "batch"}}, 413, "file"),
    "far too large": ({"files": {"file": ("a", b"x" * 4 * MIB)}, "data": {"purpose": "batch"}}, 413, None),
    "JSON": ({"json": {"purpose": "batch"}}, 415, None),
    "no form": ({"content": b"x" * 100, "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, 400, None),
    "no boundary": ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 415, None),
}


@pytest.mark.parametrize(("request_", "status", "param"), BAD_UPLOADS.values(), ids=BAD_UPLOADS.keys())
def test_upload_that_is_wrong_is_refused_and_leaves_nothing(
    api: httpx.Client, api_stack: Stack, request_: dict[str, Any], status: int, param: str | None
) -> None:
    assert refused(api.post("/v1/files", **request_), status)["param"] == param
    assert keys(api_stack) == set()


def test_upload_that_breaks_off_leaves_nothing(api: httpx.Client, api_stack: Stack) -> None:
    port = int(re.findall(r"\d+", api_stack.base_url)[-1])
    head = (
        b"POST /v1/files HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 3000000\r\n\r\n"
    )
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(head + part + b"x" * 2 * MIB)
        wait_for(lambda: keys(api_stack), what="the first piece")
        assert api.get("/v1/files").json()["data"] == []
    wait_for(lambda: not keys(api_stack), what="the end of what was stored")


def test_form_that_ends_in_the_middle_is_refused(api: httpx.Client, api_stack: Stack) -> None:
    content = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"x" * 2 * MIB
    answer = api.post("/v1/files", content=content, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert "ends early" in refused(answer, 400)["message"]
    assert keys(api_stack) == set()


def test_list_of_files_measures_what_it_shows_and_no_more(api: httpx.Client, api_stack: Stack, driver: Driver) -> None:
    batches = [batch_of(api)["id"] for _ in range(3)]
    driver.work_all()
    page = api.get("/v1/files?purpose=batch_output&limit=1").json()
    assert page["has_more"] is True
    assert page["data"][0]["bytes"] == len(api.get(f"/v1/files/{page['data'][0]['id']}/content").content)
    with redis.Redis.from_url(api_stack.redis_url) as server:
        records = [server.hgetall(f"vector-api:batch:{name.replace('batch', 'job')}") for name in batches]
    assert sum(b"sizes:output" in record for record in records) == 1


def test_files_beyond_the_room_are_refused_until_some_are_deleted(api: httpx.Client) -> None:
    first = send(api, b"x" * 3 * MIB).json()["id"]
    answer = send(api, b"x" * 2 * MIB)
    assert "MAX_FILES_BYTES" in refused(answer, 429)["message"]
    assert int(answer.headers["retry-after"]) > 0
    assert len(api.get("/v1/files").json()["data"]) == 1
    assert api.delete(f"/v1/files/{first}").json() == {"id": first, "object": "file", "deleted": True}
    assert send(api, b"x" * 2 * MIB).status_code == 200
    refused(api.delete(f"/v1/files/{first}"), 404)


def test_file_that_never_fits_is_too_large(api: httpx.Client, api_stack: Stack) -> None:
    send(api, b"x" * 2 * MIB)
    usual = api_stack.base_url
    narrow = api_stack.api(MAX_FILES_BYTES=str(2 * MIB))
    with httpx.Client(base_url=api_stack.base_url, timeout=60) as other:
        assert "(MAX_FILES_BYTES)" in refused(send(other, b"x" * 3 * MIB), 413)["message"]
        refused(send(other, b"x" * MIB), 429)
    assert narrow.stop() == 0
    api_stack.base_url = usual


def test_result_of_a_batch_whose_files_are_deleted_is_not_found(api: httpx.Client, driver: Driver) -> None:
    batch = batch_of(api)
    driver.work_all()
    path = f"/v1/jobs/{batch['id'].replace('batch', 'job')}"
    assert api.get(f"{path}/result").json()["count"] == 3
    output = api.get(f"/v1/batches/{batch['id']}").json()["output_file_id"]
    assert api.delete(f"/v1/files/{output}").status_code == 200
    assert api.get(path).json()["status"] == "succeeded"
    for what in ("result", "manifest"):
        error = refused(api.get(f"{path}/{what}"), 404)
        assert (error["code"], error["param"]) == ("vectors_deleted", "id")


def test_list_passes_over_a_batch_that_is_deleted_while_its_lines_are_counted(
    api: httpx.Client, api_stack: Stack, driver: Driver
) -> None:
    kept, gone = batch_of(api), batch_of(api)
    driver.work_all(failed={0})
    with redis.Redis.from_url(api_stack.redis_url) as server:
        server.delete(f"vector-api:lines:{gone['id'].replace('batch', 'job')}")  # as a deletion leaves it to the counting
    assert [batch["id"] for batch in api.get("/v1/batches").json()["data"]] == [kept["id"]]


def test_batch_shows_every_key(api: httpx.Client) -> None:
    batch = batch_of(api)
    times = {name: batch.pop(name) for name in list(batch) if name.endswith("_at")}
    assert times == dict.fromkeys(times) | {
        "created_at": times["created_at"],
        "in_progress_at": times["created_at"],
        "expires_at": times["created_at"] + 86_400,
    }
    assert sorted(times) == sorted(f"{word}_at" for word in TIMES)
    assert (batch["object"], batch["endpoint"], batch["model"], batch["status"]) == (
        "batch",
        "/v1/embeddings",
        MODEL,
        "in_progress",
    )
    assert batch["request_counts"] == {"total": 3, "completed": 0, "failed": 0}
    for name in ("errors", "output_file_id", "error_file_id", "metadata"):
        assert batch[name] is None


def test_batch_is_a_job_as_well(api: httpx.Client, driver: Driver) -> None:
    batch = batch_of(api, lines_of(10, texts=2))
    job = api.get("/v1/jobs").json()["data"][0]
    assert job["id"] == batch["id"].replace("batch_", "job_")
    assert job["counts"]["total"] == 20
    driver.work_all()
    assert api.get(f"/v1/jobs/{job['id']}").json()["status"] == "succeeded"
    assert api.get(f"/v1/jobs/{job['id']}/result").json()["count"] == 20
    output = api.get(f"/v1/batches/{batch['id']}").json()["output_file_id"]
    api.delete(f"/v1/jobs/{job['id']}")
    for path in (f"/v1/batches/{batch['id']}", f"/v1/files/{output}", f"/v1/files/{output}/content"):
        refused(api.get(path), 404)
    assert api.get("/v1/batches").json()["data"] == []
    assert [file["purpose"] for file in api.get("/v1/files").json()["data"]] == ["batch"]


def test_nothing_of_a_batch_that_was_refused_is_left(api: httpx.Client, api_stack: Stack) -> None:
    good, bad = send(api, lines_of(3000)).json()["id"], send(api, lines_of(200) + b"nonsense").json()["id"]
    failed = ask(api, bad).json()
    assert (failed["status"], failed["errors"]["data"][0]["line"]) == ("failed", 201)
    assert {name.split(":")[0] for name in keys(api_stack)} == {
        "file",
        "content",
        "sizes",
        "uploads",
        "files",
        "live",
        "batch",
        "batches",
        "expiring",
    }
    accepted = ask(api, good).json()
    before = keys(api_stack)
    assert "MAX_WAITING_INPUTS" in refused(ask(api, good), 429)["message"]
    assert keys(api_stack) == before
    assert [batch["id"] for batch in api.get("/v1/batches").json()["data"]] == [accepted["id"], failed["id"]]


def test_repeated_request_is_one_batch(api: httpx.Client) -> None:
    file_id = send(api).json()["id"]
    first = ask(api, file_id, headers={"Idempotency-Key": "k"})
    again = ask(api, file_id, headers={"Idempotency-Key": "k"})
    assert again.json() == first.json()
    assert (first.headers.get("idempotent-replayed"), again.headers["idempotent-replayed"]) == (None, "true")
    refused(ask(api, file_id, headers={"Idempotency-Key": "k"}, completion_window="7d"), 409)
    assert len(api.get("/v1/batches").json()["data"]) == 1


def test_batch_of_an_output_or_of_nothing_is_refused(api: httpx.Client, driver: Driver) -> None:
    batch = batch_of(api)
    driver.work_all()
    output = api.get(f"/v1/batches/{batch['id']}").json()["output_file_id"]
    for file_id in (output, "file-none", "job_x"):
        assert refused(ask(api, file_id), 404)["code"] == "file_not_found"
    refused(api.post("/v1/batches", content=b"x", headers={"Content-Type": "text/plain"}), 415)
    assert refused(ask(api, "file-1", colour="red"), 400)["message"].startswith("the body has the unknown key 'colour'")
    refused(api.get("/v1/batches?limit=101"), 400)
    refused(api.get("/v1/files?order=up"), 400)
    refused(api.get("/v1/files?after=file-none"), 404)


def test_completion_window_that_is_over_keeps_what_was_done(api: httpx.Client, api_stack: Stack, driver: Driver) -> None:
    batch = batch_of(api, lines_of(3, texts=3))
    driver.commit(driver.claim(max_bytes=1).shards[0])
    with redis.Redis.from_url(api_stack.redis_url) as server:
        server.zadd("vector-api:deadlines", {batch["id"].replace("batch_", "job_"): 1})
    found = api.get(f"/v1/batches/{batch['id']}").json()
    assert (found["status"], found["request_counts"]) == ("expired", {"total": 3, "completed": 1, "failed": 2})
    assert found["expired_at"] is not None
    done = api.get(f"/v1/files/{found['output_file_id']}/content").text.splitlines()
    lost = [json.loads(line) for line in api.get(f"/v1/files/{found['error_file_id']}/content").text.splitlines()]
    assert [json.loads(line)["custom_id"] for line in done] == ["n0"]
    assert [(line["custom_id"], line["response"], line["error"]["code"]) for line in lost] == [
        ("n1", None, "batch_expired"),
        ("n2", None, "batch_expired"),
    ]
    refused(api.post(f"/v1/batches/{batch['id']}/cancel"), 409)


def test_many_at_once_keep_apart(api: httpx.Client, driver: Driver) -> None:
    batches: list[dict[str, Any]] = []
    threads = [threading.Thread(target=lambda n=n: batches.append(batch_of(api, lines_of(100 + n)))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    driver.work_all()
    assert sorted(api.get(f"/v1/batches/{batch['id']}").json()["request_counts"]["completed"] for batch in batches) == list(
        range(100, 108)
    )
