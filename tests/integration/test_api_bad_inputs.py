"""What nobody sends by mistake: each row is sent as it is, byte for byte, and has one answer.

What clients get wrong by mistake is in `test_api_requests.py`, bodies that break off in `test_api_uploads.py`. Here the service
must also be as well as before, and Redis must hold the same keys.
"""

import gzip
import itertools
import json
import re
import socket
import threading
from contextlib import ExitStack, suppress
from typing import NamedTuple

import httpx
import pytest
import redis

from api.server import HEAD_SECONDS
from tests.ledger_driver import Driver
from tests.processes import Stack

pytestmark = pytest.mark.integration

JSON, NDJSON = "application/json", "application/x-ndjson"
GOOD = b'{"inputs": ["a"]}'


def post(body: bytes, *fields: str, content_type: str = JSON, path: str = "/v1/jobs", length: str | None = None) -> bytes:
    """A whole request to submit a job, after which the server is to close."""
    lines = [f"POST {path} HTTP/1.1", "Host: a", "Connection: close", f"Content-Type: {content_type}", *fields]
    lines += [length if length is not None else f"Content-Length: {len(body)}"]
    return "\r\n".join(line for line in lines if line).encode("latin-1") + b"\r\n\r\n" + body


def get(path: str | bytes, *fields: str) -> bytes:
    target = path if isinstance(path, bytes) else path.encode()
    lines = ["Host: a", "Connection: close", *fields]
    return b"GET " + target + b" HTTP/1.1\r\n" + "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def inputs(text: str) -> bytes:
    """The JSON of one input, which stands in it as it is."""
    return b'{"inputs": [' + text.encode() + b"]}"


CHUNKED = "Transfer-Encoding: chunked"
ONE_CHUNK = b"%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD)

BAD: dict[str, tuple[bytes, int, str | None, str | None]] = {
    # sent, status, code, param
    # Texts
    "10 MB in one text": (post(inputs(json.dumps("a" * 10_000_000))), 413, "request_too_large", None),
    "8 MB in one text": (post(inputs(json.dumps("a" * 8_000_000))), 400, "invalid_request", "inputs[0]"),
    "lone surrogate": (post(inputs(r'"\ud800"')), 400, "invalid_request", None),
    "surrogates the wrong way round": (post(inputs(r'"\udc00\ud800"')), 400, "invalid_request", None),
    "NUL as it is": (post(inputs('"\0"')), 400, "invalid_request", None),
    "line break as it is": (post(inputs('"a\nb"')), 400, "invalid_request", None),
    "overlong UTF-8": (post(b'{"inputs": ["\xc0\xaf"]}'), 400, "invalid_request", None),
    # JSON
    "100,000 lists deep": (post(b"[" * 100_000 + b"]" * 100_000), 400, "invalid_request", None),
    "100,000 objects deep": (post(b'{"inputs":' * 100_000 + b"1" + b"}" * 100_000), 400, "invalid_request", None),
    "100,000 lists deep in a line": (post(b"[" * 100_000, content_type=NDJSON), 400, "invalid_request", "line 1"),
    "exponent": (post(b'{"inputs": ["a"], "dimensions": 1e400}'), 400, "invalid_request", None),
    "exponent that is not whole": (post(b'{"inputs": ["a"], "dimensions": 12e-1}'), 400, "invalid_request", "dimensions"),
    "a million digits": (
        post(b'{"inputs": ["a"], "ttl_seconds": ' + b"9" * 1_000_000 + b"}"),
        400,
        "invalid_request",
        None,
    ),
    "number below all": (post(b'{"inputs": ["a"], "ttl_seconds": -9223372036854775809}'), 400, "invalid_request", "ttl_seconds"),
    "infinity in metadata": (post(b'{"inputs": ["a"], "metadata": {"x": Infinity}}'), 400, "invalid_request", None),
    "key twice, the last one bad": (post(b'{"inputs": ["a"], "queue": "cpu", "queue": "tpu"}'), 400, "invalid_request", "queue"),
    "key of every object": (post(b'{"inputs": ["a"], "__proto__": {}}'), 400, "invalid_request", "__proto__"),
    "no inputs": (post(b'{"inputs": []}'), 400, "invalid_request", "inputs"),
    # Encodings
    "UTF-16": (post('{"inputs": ["a"]}'.encode("utf-16")), 400, "invalid_request", None),
    "UTF-16 as announced": (
        post('{"inputs": ["a"]}'.encode("utf-16-le"), content_type=f"{JSON}; charset=utf-16le"),
        400,
        "invalid_request",
        None,
    ),
    "latin-1": (post('{"inputs": ["é"]}'.encode("latin-1")), 400, "invalid_request", None),
    "byte order mark": (post(b"\xef\xbb\xbf" + GOOD), 400, "invalid_request", None),
    "byte order mark in front of lines": (post(b'\xef\xbb\xbf"a"\n', content_type=NDJSON), 400, "invalid_request", "line 1"),
    "latin-1 in a line": (post('"a"\n"é"\n'.encode("latin-1"), content_type=NDJSON), 400, "invalid_request", "line 2"),
    "lines cut off in the middle of a text": (post(b'"a"\n"b', content_type=NDJSON), 400, "invalid_request", "line 2"),
    "gzip bomb": (
        post(gzip.compress(b"[" + b" " * 50_000_000), "Content-Encoding: gzip"),
        415,
        "unsupported_media_type",
        None,
    ),
    "unknown encodings": (post(GOOD, "Content-Encoding: br, identity"), 415, "unsupported_media_type", None),
    "gzip that is not announced": (post(gzip.compress(GOOD)), 400, "invalid_request", None),
    # Types
    "two types": (post(GOOD, content_type=f"{JSON}, {NDJSON}"), 415, "unsupported_media_type", None),
    "type of 4,000 characters": (post(GOOD, content_type="x" * 4000), 415, "unsupported_media_type", None),
    "type with a NUL": (post(GOOD, content_type="application/json\0"), 400, "bad_request", None),
    # Lengths
    "negative length": (post(GOOD, length="Content-Length: -1"), 400, "bad_request", None),
    "length that is no number": (post(GOOD, length="Content-Length: 0x11"), 400, "bad_request", None),
    "two lengths": (post(GOOD, "Content-Length: 3"), 400, "bad_request", None),
    "length of 30 digits": (post(GOOD, length=f"Content-Length: {'9' * 30}"), 413, "request_too_large", None),
    "length and chunks": (post(ONE_CHUNK, CHUNKED), 400, "bad_request", None),
    "chunked twice": (post(ONE_CHUNK, CHUNKED, length=CHUNKED), 400, "bad_request", None),
    "chunks of HTTP/1.0": (post(ONE_CHUNK, length=CHUNKED).replace(b"HTTP/1.1", b"HTTP/1.0", 1), 400, "bad_request", None),
    "no length": (post(GOOD, length=""), 400, "invalid_request", None),
    "negative chunk": (post(b"-5\r\nhello\r\n0\r\n\r\n", length=CHUNKED), 400, "incomplete_body", None),
    "chunk of 2**64": (post(b"10000000000000000\r\nhello", length=CHUNKED), 400, "incomplete_body", None),
    "chunk size of 100,000 zeros": (post(b"0" * 100_000, length=CHUNKED), 400, "incomplete_body", None),
    # Heads
    "path of 8,000": (get("/v1/jobs/" + "x" * 8000), 404, "job_not_found", "id"),
    "path of 9,000": (get("/v1/jobs/" + "x" * 9000), 414, "uri_too_long", None),
    "query of 9,000": (get("/v1/jobs?after=" + "x" * 9000), 414, "uri_too_long", None),
    "parameter of 7,000": (get("/v1/jobs?" + "x" * 7000), 400, "invalid_request", "x" * 64),
    "field of 9,000": (get("/v1/jobs", "X-Long: " + "x" * 9000), 431, "request_header_fields_too_large", None),
    "500 fields": (get("/v1/jobs", *(f"X-{n}: a" for n in range(500))), 431, "request_header_fields_too_large", None),
    "a megabyte without a line break": (b"G" * 1_000_000, 414, "uri_too_long", None),
    "field with a line break in it": (get("/v1/jobs", "X: a\nX-Injected: b"), 400, "bad_request", None),
    "field without a colon": (get("/v1/jobs", "nonsense"), 400, "bad_request", None),
    "space in front of the colon": (get("/v1/jobs", "Accept : a"), 400, "bad_request", None),
    "HTTP/9": (b"GET / HTTP/9.9\r\nHost: a\r\n\r\n", 400, "bad_request", None),
    "method with a NUL": (b"G\0T / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad_request", None),
    "TLS": (bytes.fromhex("16030100a5010000a10303") + bytes(160) + b"\r\n\r\n", 400, "bad_request", None),
    "method nobody knows": (b"BREW / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 405, "method_not_allowed", None),
    "Expect that cannot be met": (post(GOOD, "Expect: 200-ok"), 417, "expectation_failed", None),
    # Paths and queries
    "bad percent encodings": (get("/v1/jobs/%zz%"), 404, "job_not_found", "id"),
    "bytes that are no UTF-8": (get("/v1/jobs/%ff%fe"), 404, "job_not_found", "id"),
    "NUL in an id": (get("/v1/jobs/a%00b"), 404, "job_not_found", "id"),
    "line break in an id": (get("/v1/jobs/a%0d%0aSet-Cookie:%20b"), 404, "job_not_found", "id"),
    "slash in an id": (get("/v1/jobs/a%2Fb"), 404, "not_found", None),
    "id of another key's form": (get("/v1/jobs/*"), 404, "job_not_found", "id"),
    "up and away": (get("/v1/jobs/..%2f..%2fetc%2fpasswd"), 404, "not_found", None),
    "emoji in an id": (get("/v1/jobs/" + "%F0%9F%8E%89" * 20), 404, "job_not_found", "id"),
    "bytes above 127 in a path": (get(b"/v1/jobs/\xff\xfe"), 400, "bad_request", None),
    "id as a list to read on from": (get("/v1/jobs?after=%00%ff"), 404, "job_not_found", "after"),
    "digits of another script": (get("/v1/jobs?limit=%D9%A3"), 400, "invalid_request", "limit"),
    "parameter twice": (get("/v1/jobs?limit=1&limit=2"), 400, "invalid_request", "limit"),
    "NUL in a parameter": (get("/v1/jobs?status=%00"), 400, "invalid_request", "status"),
    "wait for ever": (get("/v1/jobs/x?wait=inf"), 400, "invalid_request", "wait"),
    "offset beyond all": (get(f"/v1/jobs/x/result?offset={10**30}"), 400, "invalid_request", "offset"),
    "accept nothing there is": (get("/v1/jobs/x/result", "Accept: text/html;q=0.1"), 406, "not_acceptable", None),
}


class Answer(NamedTuple):
    status: int
    code: str | None
    param: str | None


def send(stack: Stack, sent: bytes) -> bytes:
    """All that comes back until the server closes. It may close before it has taken everything."""
    with connect(stack) as connection:
        writer = threading.Thread(target=write, args=(connection, sent))
        writer.start()
        received = receive(connection)
        writer.join()
    return received


def receive(connection: socket.socket) -> bytes:
    received = b""
    with suppress(ConnectionResetError):
        while piece := connection.recv(65_536):
            received += piece
    return received


def connect(stack: Stack) -> socket.socket:
    port = int(re.findall(r"\d+", stack.base_url)[-1])
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def write(connection: socket.socket, sent: bytes) -> None:
    with suppress(OSError):  # it was refused, and closed
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)


def read_answer(received: bytes) -> Answer:
    """The one answer; it has the one shape."""
    head, _, body = received.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert b"\r\nx-request-id: " in head
    assert b"\r\nContent-Type: application/json" in head
    assert len(error["message"]) < 1000
    return Answer(status, error["code"], error["param"])


def keys_of(stack: Stack) -> list[bytes]:
    with redis.Redis.from_url(stack.redis_url) as server:
        return sorted(server.keys())


@pytest.mark.parametrize(("sent", "status", "code", "param"), BAD.values(), ids=BAD.keys())
def test_bad_input_has_its_answer_and_leaves_nothing(
    api: httpx.Client, api_stack: Stack, sent: bytes, status: int, code: str, param: str | None
) -> None:
    before = keys_of(api_stack)
    assert read_answer(send(api_stack, sent)) == (status, code, param)
    assert keys_of(api_stack) == before
    assert api.get("/readyz").json()["status"] == "ready"


def answers_in(received: bytes) -> list[tuple[int, bytes]]:
    """Status and body of each answer, one behind the other."""
    found = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        length = int(re.search(rb"Content-Length: (\d+)", head)[1])  # type: ignore[index]
        found.append((int(head.split()[1]), rest[:length]))
        received = rest[length:]
    return found


FOLLOWED = {
    "nonsense": b"\0\0 nonsense \r\n\r\n",
    "the rest of a body that was longer than announced": b'{"inputs": ["smuggled"]}\r\n\r\n',
    "a head that is too large": b"GET /v1/jobs HTTP/1.1\r\nX: " + b"x" * 9000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("rest", FOLLOWED.values(), ids=FOLLOWED.keys())
def test_what_follows_a_request_is_no_part_of_it(api: httpx.Client, api_stack: Stack, rest: bytes) -> None:
    request = post(GOOD).replace(b"Connection: close\r\n", b"", 1)
    (status, body), *more = answers_in(send(api_stack, request + rest))
    assert status == 202
    assert json.loads(body)["counts"]["total"] == 1
    assert [status for status, _ in more] in ([400], [431])
    assert len(api.get("/v1/jobs").json()["data"]) == 1


def test_refused_body_is_not_read_as_the_next_request(api: httpx.Client, api_stack: Stack) -> None:
    hidden = get("/v1/queues") * 3
    refused = post(hidden, content_type="text/plain").replace(b"Connection: close\r\n", b"", 1)
    answers = answers_in(send(api_stack, refused + get("/healthz")))
    assert [(status, b"queue" in body) for status, body in answers] == [(415, False), (200, False)]


def test_slow_clients_hold_up_nobody_and_are_served(api: httpx.Client, api_stack: Stack) -> None:
    request = post(inputs('"slow"'))
    body = request.index(b"\r\n\r\n") + 4
    cuts = [0, 1, 10, body - 2, body, body + 5, len(request)]
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(api_stack)) for _ in range(20)]
        for start, end in itertools.pairwise(cuts):
            for connection in slow:
                connection.sendall(request[start:end])
            assert api.get("/readyz", timeout=30).status_code == 200
        assert [connection.recv(12) for connection in slow] == [b"HTTP/1.1 202"] * 20


def test_clients_that_do_not_close_hold_up_nobody(api: httpx.Client, api_stack: Stack) -> None:
    with ExitStack() as stack:
        open_ = [stack.enter_context(connect(api_stack)) for _ in range(20)]
        for connection in open_:
            connection.sendall(post(GOOD))
        assert [connection.recv(12) for connection in open_] == [b"HTTP/1.1 202"] * 20
        assert api.get("/readyz", timeout=10).status_code == 200, "one after the other they would take 40 s"
        assert all(b"job_" in receive(connection) for connection in open_), "and the server has closed its side"


def test_heads_that_never_end_are_given_up(api: httpx.Client, api_stack: Stack) -> None:
    """More of them than there are threads: for a while nobody else is served, and then everybody is."""
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(api_stack)) for _ in range(70)]
        for connection in slow:
            connection.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost:")
        assert api.get("/readyz", timeout=HEAD_SECONDS + 10).status_code == 200
        assert read_answer(slow[0].recv(65_536)) == (408, "request_timeout", None)


ODD = {
    "NUL": "a\0b",
    "byte order mark": "\ufeffa",
    "no characters": "\ufffe\uffff\U0010ffff",
    "right to left": "\u202eabc\u202c",
    "combining": "e" + "\u0301" * 1000,
    "blank": " \t\r\n",
    "emoji": "👩‍👩‍👧‍👦" * 100,
    "control characters": "".join(map(chr, range(1, 32))) + "\x7f",
    "looks like JSON": '{"inputs": ["a"]}',
}


@pytest.mark.parametrize("content_type", [JSON, NDJSON])
def test_odd_texts_and_ids_arrive_as_they_are(api: httpx.Client, driver: Driver, content_type: str) -> None:
    items = [{"id": text[:256], "text": text} for text in ODD.values()] + [{"id": "twice", "text": "a"}] * 2
    lines = "".join(json.dumps(item) + "\n" for item in items)
    body = json.dumps({"inputs": items}) if content_type == JSON else lines
    answer = api.post("/v1/jobs", content=body, headers={"Content-Type": content_type})
    assert answer.status_code == 202, answer.text
    claimed = [item for shard in driver.claim(1_000_000).shards for item in shard.inputs]
    assert [{"id": item.id, "text": item.text} for item in claimed] == items


def test_of_a_key_that_comes_twice_the_last_counts(api: httpx.Client, driver: Driver) -> None:
    body = b'{"inputs": ["a"], "queue": "gpu", "queue": "cpu", "inputs": ["b"]}'
    assert api.post("/v1/jobs", content=body, headers={"Content-Type": JSON}).json()["queue"] == "cpu"
    assert [item.text for shard in driver.claim().shards for item in shard.inputs] == ["b"]
