"""Bodies that come in pieces, late, or not whole. A job exists only when every byte of it came."""

import json
import re
import socket
import struct
import threading
from collections.abc import Iterator

import httpx
import pytest
import redis

from core.ledger import Ledger
from core.sharding import Span
from tests.ledger_driver import Driver
from tests.processes import Stack, wait_for

pytestmark = pytest.mark.integration

NDJSON = {"Content-Type": "application/x-ndjson"}


@pytest.fixture(scope="module")
def api_environ() -> dict[str, str]:
    return {"SHARD_INPUTS": "4"}


def port_of(stack: Stack) -> int:
    return int(re.findall(r"\d+", stack.base_url)[-1])


def job_keys(stack: Stack) -> list[bytes]:
    with redis.Redis.from_url(stack.redis_url) as server:
        return [key for key in server.keys("vector-api:*") if b":celery:" not in key]


def answer_to(stack: Stack, pieces: list[bytes], *, reset: bool = False) -> bytes:
    """What the API answers when the client sends these pieces and then ends its side, or resets the connection."""
    with socket.create_connection(("127.0.0.1", port_of(stack)), timeout=10) as connection:
        for piece in pieces:
            connection.sendall(piece)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return b""
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while piece := connection.recv(65_536):
            received += piece
        return received


def head(content_type: str, length: str) -> bytes:
    return f"POST /v1/jobs HTTP/1.1\r\nHost: a\r\nContent-Type: {content_type}\r\n{length}\r\n\r\n".encode()


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


LINES = b'"a text"\n' * 100
BODY = json.dumps({"inputs": ["a", "b"]}).encode()
TYPES = [("application/x-ndjson", LINES), ("application/json", BODY)]


@pytest.mark.parametrize(("content_type", "body"), TYPES, ids=["ndjson", "json"])
@pytest.mark.parametrize("missing", [1, 5])
def test_body_shorter_than_announced_is_not_accepted(
    api: httpx.Client, api_stack: Stack, content_type: str, body: bytes, missing: int
) -> None:
    answer = answer_to(api_stack, [head(content_type, f"Content-Length: {len(body) + missing}"), body])
    assert b" 400 " in answer.split(b"\r\n")[0]
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert error["code"] == "incomplete_body"
    assert f"{len(body)} of {len(body) + missing} bytes came" in error["message"]
    assert job_keys(api_stack) == []


BROKEN_ENDS = {
    "no last chunk": b"",
    "half a last chunk": b"0\r\n",
    "half a size": b"1",
    "half a chunk": b"20\r\n" + b'"more"\n',
    "a chunk without its end": b'8\r\n"more"\n\nXX',
    "a size that is none": b"zz\r\n",
}


@pytest.mark.parametrize(("content_type", "body"), TYPES, ids=["ndjson", "json"])
@pytest.mark.parametrize("end", BROKEN_ENDS.values(), ids=BROKEN_ENDS.keys())
def test_chunked_body_that_breaks_off_is_not_accepted(
    api: httpx.Client, api_stack: Stack, content_type: str, body: bytes, end: bytes
) -> None:
    answer = answer_to(api_stack, [head(content_type, "Transfer-Encoding: chunked"), chunk(body), end])
    assert b" 400 " in answer.split(b"\r\n")[0]
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert error["code"] == "incomplete_body"
    assert "a text" not in error["message"]
    assert job_keys(api_stack) == []


def test_client_that_vanishes_while_it_sends_leaves_nothing(api: httpx.Client, api_stack: Stack) -> None:
    with socket.create_connection(("127.0.0.1", port_of(api_stack)), timeout=10) as connection:
        connection.sendall(head("application/x-ndjson", "Transfer-Encoding: chunked"))
        for _ in range(200):
            connection.sendall(chunk(LINES))
        wait_for(lambda: job_keys(api_stack), what="the first staged shards")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets
    wait_for(lambda: not job_keys(api_stack), what="the end of what was staged")
    assert api.get("/v1/jobs").json()["data"] == []


def test_whole_body_in_tiny_pieces_is_accepted(api: httpx.Client, api_stack: Stack, api_ledger: Ledger) -> None:
    text = "héllo wörld 🎉"
    body = (json.dumps(text, ensure_ascii=False) + "\r\n\n" + json.dumps({"id": "ünï", "text": text})).encode()
    pieces = [chunk(body[n : n + 1]) for n in range(len(body))]
    answer = answer_to(api_stack, [head("application/x-ndjson", "Transfer-Encoding: chunked"), *pieces, b"0\r\n\r\n"])
    assert b" 202 " in answer.split(b"\r\n")[0]
    claim = api_ledger.claim("cpu", "w", lease_seconds=5, max_bytes=10_000)
    assert [(item.text, item.id) for item in claim.shards[0].inputs] == [(text, None), (text, "ünï")]


def test_stream_is_staged_while_it_is_still_being_sent(api: httpx.Client, api_stack: Stack, driver: Driver) -> None:
    """The job is not there before its last byte came, its inputs are; and it is one job."""
    more = threading.Event()
    answers: list[httpx.Response] = []

    def pieces() -> Iterator[bytes]:
        for _ in range(200):
            yield LINES
        assert more.wait(30)
        yield b'"last"'

    def send() -> None:
        answers.append(httpx.post(f"{api_stack.base_url}/v1/jobs", content=pieces(), headers=NDJSON, timeout=30))

    sender = threading.Thread(target=send)
    sender.start()
    try:
        wait_for(lambda: job_keys(api_stack), what="the first staged shards")
        assert api.get("/v1/jobs").json()["data"] == []
        assert driver.claim().shards == ()
    finally:
        more.set()
        sender.join()
    assert answers[0].status_code == 202
    assert answers[0].json()["counts"]["total"] == 20001
    assert driver.work_all() == 5001
    assert api.get(answers[0].headers["location"]).json()["status"] == "succeeded"


def test_options_of_a_stream_stand_in_the_query(api: httpx.Client, api_ledger: Ledger) -> None:
    query = {
        "queue": "gpu",
        "model": "sentence-transformers/all-MiniLM-L6-v2",
        "normalize": "false",
        "dimensions": "4",
        "prompt_name": "query",
        "truncate": "error",
        "priority": "interactive",
        "metadata": '{"team": "ü", "n": [1, null]}',
        "ttl_seconds": "60",
    }
    record = api.post("/v1/jobs", params=query, content=b'"a"\n"b"', headers=NDJSON).json()
    expected = query | {"normalize": False, "dimensions": 4, "metadata": {"team": "ü", "n": [1, None]}, "ttl_seconds": 60}
    assert {name: record[name] for name in expected} == expected
    options = {name: value for name, value in expected.items() if name not in ("metadata",)}
    as_json = api.post("/v1/jobs", json={"inputs": ["a", "b"], "metadata": expected["metadata"]} | options).json()
    changing = ("id", "created_at", "links")
    assert {k: v for k, v in record.items() if k not in changing} == {k: v for k, v in as_json.items() if k not in changing}


def test_long_lines_and_many_shards_arrive_whole(api: httpx.Client, api_ledger: Ledger) -> None:
    """Lines of up to several pieces, escapes of twelve bytes a character, shards that end by characters."""
    texts = ["🎉" * n for n in (1, 50_000, 3, 200_000, 7)] + [f"text {n}" for n in range(100)]
    body = b"".join(json.dumps(text).encode() + b"\n" for text in texts)
    assert api.post("/v1/jobs", content=body, headers=NDJSON).status_code == 202
    found: dict[Span, list[str]] = {}
    while claim := api_ledger.claim("cpu", "w", lease_seconds=30, max_bytes=10**9).shards:
        found |= {shard.span: [item.text for item in shard.inputs] for shard in claim}
    assert [text for span in sorted(found) for text in found[span]] == texts
    too_long = json.dumps("🎉" * 200_001).encode()
    answer = api.post("/v1/jobs", content=body + too_long, headers=NDJSON)
    assert "has 200001 characters, the limit is 200000" in answer.json()["error"]["message"]
