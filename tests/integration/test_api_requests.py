"""Everything that a client can get wrong, over HTTP, and that each answer says what, in one shape."""

import json
import re
import socket
from typing import Any

import httpx
import pytest
import redis

from core.ledger import Ledger
from tests.ledger_driver import Driver
from tests.processes import Stack, wait_for

pytestmark = pytest.mark.integration

SECRET = "a private sentence"
NDJSON = {"Content-Type": "application/x-ndjson"}
MODEL = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def api_environ() -> dict[str, str]:
    return {
        "MAX_INPUTS": "5",
        "MAX_STREAM_INPUTS": "8",
        "MAX_INPUT_CHARACTERS": "50",
        "MAX_BODY_BYTES": "30000",
        "MAX_STREAM_BYTES": "40000",
        "MAX_WAITING_INPUTS": "20",
        "MAX_TTL_SECONDS": "1000",
        "RESULT_TTL_SECONDS": "900",
        "SHARD_INPUTS": "2",
    }


def error_of(answer: httpx.Response, status: int, param: str | None = None, code: str | None = None) -> str:
    """The message of an error answer, which must have the one shape and give no text away."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert set(body) == {"error"}
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"] in ("invalid_request_error", "rate_limit_error", "server_error")
    assert isinstance(error["code"], str)
    assert SECRET not in answer.text
    if param is not None:
        assert error["param"] == param, error
    if code is not None:
        assert error["code"] == code, error
    return error["message"]


def cases(table: list[Any]) -> list[Any]:
    """Parameters of a test from rows that start with their name."""
    return [pytest.param(*row[1:], id=row[0]) for row in table]


def keys_in(stack: Stack) -> list[bytes]:
    with redis.Redis.from_url(stack.redis_url) as server:
        return [key for key in server.scan_iter() if b":celery:" not in key]


BAD_BODIES: list[tuple[str, Any, int, str | None, str]] = [
    # name, body, status, param, what the message says
    ("no inputs", {}, 400, "inputs", "inputs must be a list of strings or of objects {id, text}, got none"),
    ("inputs null", {"inputs": None}, 400, "inputs", "got null"),
    ("inputs a text", {"inputs": SECRET}, 400, "inputs", "got a string of 18 characters"),
    ("inputs empty", {"inputs": []}, 400, "inputs", "inputs is empty"),
    (
        "too many",
        {"inputs": ["a"] * 6},
        400,
        "inputs",
        "inputs has 6 items, the limit of a JSON request is 5 (MAX_INPUTS); .*x-ndjson",
    ),
    ("empty text", {"inputs": ["a", ""]}, 400, "inputs[1]", "inputs[1] is empty"),
    ("empty text of an object", {"inputs": [{"text": ""}]}, 400, "inputs[0].text", "inputs[0].text is empty"),
    ("text too long", {"inputs": [SECRET * 4]}, 400, "inputs[0]", "has 72 characters, the limit is 50 (MAX_INPUT_CHARACTERS)"),
    (
        "long text of an object",
        {"inputs": ["a", {"text": SECRET * 4}]},
        400,
        "inputs[1].text",
        "inputs[1].text has 72 characters",
    ),
    ("input a number", {"inputs": [7]}, 400, "inputs[0]", "inputs[0] must be a string or an object {id, text}, got a number"),
    ("input a list", {"inputs": [[SECRET]]}, 400, "inputs[0]", "got a list of 1"),
    ("input null", {"inputs": [None]}, 400, "inputs[0]", "got null"),
    ("input true", {"inputs": [True]}, 400, "inputs[0]", "got a boolean"),
    ("no text", {"inputs": [{"id": "a"}]}, 400, "inputs[0].text", "must be a string, got none"),
    ("text a number", {"inputs": [{"text": 7}]}, 400, "inputs[0].text", "must be a string, got a number"),
    (
        "id a number",
        {"inputs": [{"id": 7, "text": "a"}]},
        400,
        "inputs[0].id",
        "a string of at most 256 characters, got a number",
    ),
    ("id too long", {"inputs": [{"id": "x" * 257, "text": "a"}]}, 400, "inputs[0].id", "got a string of 257 characters"),
    (
        "input with more keys",
        {"inputs": [{"text": "a", "txt": SECRET}]},
        400,
        "inputs[0]",
        "unknown key 'txt'; known are id, text",
    ),
    ("unknown key", {"inputs": ["a"], "quue": "cpu"}, 400, "quue", "unknown key 'quue'; known are inputs, queue, model"),
    ("unknown keys", {"inputs": ["a"], "x": 1, "y": 2}, 400, "x", "unknown keys 'x', 'y'"),
    ("a text as key", {"inputs": ["a"], SECRET: 1}, 400, None, "unknown key of 18 characters"),
    ("misspelt inputs", {"input": ["a"]}, 400, "input", "unknown key 'input'; known are inputs"),
    ("unknown queue", {"inputs": ["a"], "queue": "tpu"}, 400, "queue", "queue must be 'auto', 'cpu' or 'gpu', got 'tpu'"),
    ("queue a text", {"inputs": ["a"], "queue": SECRET}, 400, "queue", "got a string of 18 characters"),
    ("queue a number", {"inputs": ["a"], "queue": 1}, 400, "queue", "got 1"),
    (
        "unknown model",
        {"inputs": ["a"], "model": "other/one"},
        404,
        "model",
        f"there is no model 'other/one' here; the model is {MODEL}",
    ),
    ("model a number", {"inputs": ["a"], "model": 1}, 400, "model", "valid string, got 1"),
    ("normalize a word", {"inputs": ["a"], "normalize": "yes"}, 400, "normalize", "valid boolean, got 'yes'"),
    ("dimensions zero", {"inputs": ["a"], "dimensions": 0}, 400, "dimensions", "greater than or equal to 1, got 0"),
    ("dimensions a text", {"inputs": ["a"], "dimensions": "8"}, 400, "dimensions", "valid integer, got '8'"),
    ("dimensions a fraction", {"inputs": ["a"], "dimensions": 1.5}, 400, "dimensions", "valid integer, got 1.5"),
    ("dimensions true", {"inputs": ["a"], "dimensions": True}, 400, "dimensions", "valid integer, got true"),
    ("prompt_name a list", {"inputs": ["a"], "prompt_name": []}, 400, "prompt_name", "valid string, got a list of 0"),
    ("prompt_name empty", {"inputs": ["a"], "prompt_name": ""}, 400, "prompt_name", "at least 1 character"),
    ("truncate a boolean", {"inputs": ["a"], "truncate": True}, 400, "truncate", "must be 'end', 'start', 'error' or 'chunk'"),
    (
        "overlap below zero",
        {"inputs": ["a"], "truncate": "chunk", "chunk_overlap": -1},
        400,
        "chunk_overlap",
        "greater than or equal to 0, got -1",
    ),
    ("unknown priority", {"inputs": ["a"], "priority": "high"}, 400, "priority", "must be 'bulk' or 'interactive', got 'high'"),
    ("metadata a list", {"inputs": ["a"], "metadata": [1]}, 400, "metadata", "valid dictionary, got a list of 1"),
    (
        "metadata too large",
        {"inputs": ["a"], "metadata": {"k": "x" * 17_000}},
        400,
        "metadata",
        "limited to 16384 bytes of JSON, got 17008",
    ),
    ("ttl zero", {"inputs": ["a"], "ttl_seconds": 0}, 400, "ttl_seconds", "greater than or equal to 1, got 0"),
    ("ttl too long", {"inputs": ["a"], "ttl_seconds": 1001}, 400, "ttl_seconds", "at most 1000 (MAX_TTL_SECONDS), got 1001"),
    ("body a list", ["a"], 400, None, "the body must be an object with the key inputs, got a list of 1"),
    ("body a text", SECRET, 400, None, "got a string of 18 characters"),
]


@pytest.mark.parametrize(("body", "status", "param", "says"), cases(BAD_BODIES))
def test_bad_job_is_refused(api: httpx.Client, api_stack: Stack, body: Any, status: int, param: str | None, says: str) -> None:
    answer = api.post("/v1/jobs", json=body)
    message = error_of(answer, status, param)
    assert all(part in message for part in says.split(".*")), message
    assert answer.headers["x-should-retry"] == "false"
    assert keys_in(api_stack) == []


BAD_BYTES = [
    ("nothing", b"", "the body is empty, JSON is expected"),
    ("no JSON", SECRET.encode(), "the body is not valid JSON at column 1"),
    ("cut off", b'{"inputs": ["a"', "unexpected end"),
    ("more after it", b'{"inputs": ["a"]} x', "unexpected content"),
    ("lone surrogate", b'{"inputs": ["\\ud800"]}', "a lone surrogate is no character"),
    ("surrogate as bytes", b'{"inputs": ["\xed\xa0\x80"]}', "surrogate"),
    ("no UTF-8", b'{"inputs": ["\xff"]}', "not valid UTF-8"),
    ("NaN", b'{"inputs": ["a"], "dimensions": NaN}', "column 33"),
    ("second line", b'{"inputs":\n ["a",]}', "line 2 column"),
    ("too deep", b'{"inputs": ' + b"[" * 3000 + b"]" * 3000 + b"}", "depth"),
    ("metadata too deep", b'{"inputs": ["a"], "metadata": ' + b'{"a":' * 300 + b"1" + b"}" * 301, "nested too deeply"),
    ("number too long", b'{"inputs": ["a"], "dimensions": 123456789012345678901234567890}', "valid integer"),
]


@pytest.mark.parametrize(("content", "says"), cases(BAD_BYTES))
def test_body_that_is_no_json_is_refused(api: httpx.Client, content: bytes, says: str) -> None:
    message = error_of(api.post("/v1/jobs", content=content, headers={"Content-Type": "application/json"}), 400)
    assert says in message


BAD_LINES = [
    ("nothing", b"", "inputs", "the body has no inputs"),
    ("blank lines", b"\n \n\r\n", "inputs", "the body has no inputs"),
    ("no JSON", b'"a"\n' + SECRET.encode(), "line 2", "line 2 is not valid JSON at column 1"),
    ("blank lines count", b'"a"\n\n\n7\n', "line 4", "line 4 must be a string or an object {id, text}, got a number"),
    ("empty text", b'"a"\n""', "line 2", "line 2 is empty"),
    ("text too long", json.dumps({"text": SECRET * 4}).encode(), "line 1", "line 1: text has 72 characters, the limit is 50"),
    ("id a number", b'{"id": 1, "text": "a"}', "line 1", "line 1: id must be a string"),
    ("unknown key", b'{"txt": "a"}', "line 1", "unknown key 'txt'"),
    ("lone surrogate", b'"a"\n"\\udc00"\n', "line 2", "surrogate"),
    ("too many", b'"a"\n' * 9, "inputs", "line 9 is one too many, the limit is 8 inputs (MAX_STREAM_INPUTS)"),
    ("error behind staged shards", b'"a"\n' * 6 + b"{", "line 7", "line 7 is not valid JSON"),
    ("a line without end", b'"' + b"a" * 20_000, "line 1", "line 1 is longer than"),
]


@pytest.mark.parametrize(("content", "param", "says"), cases(BAD_LINES))
def test_bad_line_is_refused_and_nothing_stays(
    api: httpx.Client, api_stack: Stack, content: bytes, param: str, says: str
) -> None:
    message = error_of(api.post("/v1/jobs", content=content, headers=NDJSON), 400, param)
    assert says in message
    assert keys_in(api_stack) == []


BAD_QUERIES = [
    ("POST", "/v1/jobs?queue=tpu", "queue", "queue must be 'auto', 'cpu' or 'gpu', got 'tpu'"),
    ("POST", "/v1/jobs?dimensions=8.5", "dimensions", "dimensions must be a whole number, got '8.5'"),
    ("POST", "/v1/jobs?dimensions=", "dimensions", "a whole number, got ''"),
    ("POST", "/v1/jobs?ttl_seconds=1_0", "ttl_seconds", "a whole number, got '1_0'"),
    ("POST", "/v1/jobs?ttl_seconds=5000", "ttl_seconds", "at most 1000"),
    ("POST", "/v1/jobs?normalize=1", "normalize", "normalize must be true or false, got '1'"),
    ("POST", "/v1/jobs?metadata={", "metadata", "metadata is not valid JSON at character 1"),
    ("POST", "/v1/jobs?metadata=[]", "metadata", "valid dictionary, got a list of 0"),
    ("POST", "/v1/jobs?nope=1", "nope", "unknown query parameter 'nope'; known are chunk_overlap, dimensions, dry_run, metadata"),
    ("POST", "/v1/jobs?queue=cpu&queue=gpu", "queue", "given more than once"),
    ("POST", "/v1/jobs?inputs=a", "inputs", "unknown query parameter"),
    ("POST", "/v1/jobs?wait=31", "wait", "wait must be a number of seconds from 0 to 30, got '31'"),
    ("POST", "/v1/jobs?wait=nan", "wait", "a number of seconds"),
    ("POST", "/v1/jobs?wait=-1", "wait", "a number of seconds"),
    ("GET", "/v1/jobs/x?wait=soon", "wait", "a number of seconds"),
    ("GET", "/v1/jobs/x?limit=1", "limit", "unknown query parameter 'limit'; known are wait"),
    ("GET", "/v1/jobs?limit=0", "limit", "limit must be a whole number from 1 to 100, got '0'"),
    ("GET", "/v1/jobs?limit=101", "limit", "from 1 to 100"),
    ("GET", "/v1/jobs?limit=ten", "limit", "got 'ten'"),
    ("GET", "/v1/jobs?status=done", "status", "status must be one of queued, running, succeeded, failed, cancelled, got 'done'"),
    ("GET", "/v1/jobs/x/result?offset=-1", "offset", "offset must be a whole number of at least 0, got '-1'"),
    ("GET", "/v1/jobs/x/result?limit=0", "limit", "limit must be a whole number of at least 1"),
    ("GET", "/v1/jobs/x/result?format=csv", "format", "format must be one of json, base64, ndjson, npy, arrow, parquet, got"),
    ("GET", "/v1/queues?x=1", "x", "unknown query parameter 'x'; none is known here"),
    ("GET", "/v1/models?limit=1", "limit", "unknown query parameter 'limit'; none is known here"),
    ("GET", "/readyz?x=1", "x", "unknown query parameter"),
    ("DELETE", "/v1/jobs/x?force=1", "force", "unknown query parameter"),
]


@pytest.mark.parametrize(("method", "url", "param", "says"), BAD_QUERIES)
def test_bad_query_is_refused(api: httpx.Client, method: str, url: str, param: str, says: str) -> None:
    content = b'"a"' if method == "POST" else None
    message = error_of(api.request(method, url, content=content, headers=NDJSON if content else None), 400, param)
    assert says in message


UNKNOWN = [
    ("GET", "/nope", 404, "not_found", "there is no GET /nope"),
    ("GET", "/v1/jobs/", 404, "not_found", "there is no GET /v1/jobs/"),
    ("GET", "/v1/jobs/job_x", 404, "job_not_found", "no job 'job_x'"),
    ("GET", "/v1/jobs/job_x?wait=5", 404, "job_not_found", "no job 'job_x'"),
    ("GET", "/v1/jobs/%00%ff", 404, "job_not_found", "no job"),
    ("GET", "/v1/jobs/" + "x" * 500, 404, "job_not_found", "no job"),
    ("DELETE", "/v1/jobs/job_x", 404, "job_not_found", "no job 'job_x'"),
    ("GET", "/v1/jobs/job_x/result", 404, "job_not_found", "no job 'job_x'"),
    ("GET", "/v1/jobs?after=job_x", 404, "job_not_found", "no job 'job_x'"),
    ("PUT", "/v1/jobs", 405, "method_not_allowed", "the methods here are GET, HEAD, OPTIONS, POST"),
    ("POST", "/healthz", 405, "method_not_allowed", "there is no POST /healthz; the methods here are GET"),
    ("PATCH", "/v1/jobs/x", 405, "method_not_allowed", "the methods here are DELETE, GET"),
]


@pytest.mark.parametrize(("method", "url", "status", "code", "says"), UNKNOWN)
def test_what_is_not_there_is_said_so(api: httpx.Client, method: str, url: str, status: int, code: str, says: str) -> None:
    answer = api.request(method, url)
    assert says in error_of(answer, status, code=code)
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None]
)
def test_other_content_types_are_refused(api: httpx.Client, content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    message = error_of(api.post("/v1/jobs", content=b"inputs=a", headers=headers), 415, code="unsupported_media_type")
    assert "application/json or application/x-ndjson" in message


def test_compressed_body_is_refused(api: httpx.Client) -> None:
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    assert "Content-Encoding" in error_of(api.post("/v1/jobs", content=b"\x1f\x8b", headers=headers), 415)


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
@pytest.mark.parametrize(
    ("content_type", "limit_bytes", "setting"),
    [("application/json", 30_000, "MAX_BODY_BYTES"), ("application/x-ndjson", 40_000, "MAX_STREAM_BYTES")],
)
def test_body_over_its_limit_is_refused(
    api: httpx.Client, api_stack: Stack, content_type: str, limit_bytes: int, setting: str, chunked: bool
) -> None:
    body = (b'"a"\n' + b"\n" * limit_bytes) if "nd" in content_type else b'{"inputs": ["' + b"a" * limit_bytes + b'"]}'
    answer = api.post("/v1/jobs", content=iter([body]) if chunked else body, headers={"Content-Type": content_type})
    message = error_of(answer, 413, code="request_too_large")
    assert f"limited to {limit_bytes} bytes ({setting})" in message
    assert answer.headers["x-should-retry"] == "false"
    assert keys_in(api_stack) == []


def test_client_that_sends_far_too_much_still_reads_why(api: httpx.Client) -> None:
    body = b"x" * 20_000_000
    for content_type, status in (("application/json", 413), ("application/x-ndjson", 413), ("text/plain", 415)):
        answer = api.post("/v1/jobs", content=body, headers={"Content-Type": content_type})
        error_of(answer, status)
        assert answer.headers["connection"] == "keep-alive", "all of it was taken, the connection is good for more"
    answer = api.post("/v1/jobs", content=(body for _ in range(5)), headers=NDJSON)
    error_of(answer, 413)
    assert answer.headers["connection"] == "close", "there is an end to what is taken"
    assert api.get("/healthz").status_code == 200


@pytest.mark.parametrize("key", ["", "x" * 256, "caf\u00e9".encode("latin-1"), b"tab\there"])
def test_bad_idempotency_key_is_refused(api: httpx.Client, key: str | bytes) -> None:
    answer = api.post("/v1/jobs", json={"inputs": ["a"]}, headers={b"Idempotency-Key": key})
    assert "1 to 255 printable ASCII characters" in error_of(answer, 400, "Idempotency-Key")


def test_full_backlog_says_when_to_come_back(api: httpx.Client, api_ledger: Ledger) -> None:
    for _ in range(3):
        assert api.post("/v1/jobs", json={"inputs": ["a"] * 5}).status_code == 202
    assert api.post("/v1/jobs", content=b'"a"\n' * 4, headers=NDJSON).status_code == 202
    answer = api.post("/v1/jobs", json={"inputs": ["a"] * 2})
    message = error_of(answer, 429, code="backlog_full")
    assert "19 inputs wait, 2 were sent, the limit is 20 (MAX_WAITING_INPUTS)" in message
    assert 1 <= int(answer.headers["retry-after"]) <= 120
    assert "x-should-retry" not in answer.headers
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert api.post("/v1/jobs", json={"inputs": ["a"]}).status_code == 202
    answer = api.post("/v1/jobs", content=b'"a"\n', headers=NDJSON)
    assert "20 inputs wait, the limit is 20" in error_of(answer, 429, code="backlog_full")
    assert int(answer.headers["retry-after"]) >= 1
    assert api_ledger.waiting_inputs() == 20


def test_what_no_live_worker_can_do_is_refused(api: httpx.Client, driver: Driver) -> None:
    too_many = {"inputs": ["a"], "dimensions": 9}
    unknown = {"inputs": ["a"], "prompt_name": "passage"}
    assert api.post("/v1/jobs", json=too_many).status_code == 202, "nobody knows better yet"
    assert api.post("/v1/jobs", json=unknown).status_code == 202
    driver.report()
    empty = {"url": "/v1/jobs?dimensions=9", "content": b"", "headers": NDJSON}  # never accepted, so it fills no backlog
    wait_for(lambda: api.post(**empty).json()["error"]["param"] == "dimensions", what="the API's look at the workers")
    answer = api.post("/v1/jobs", json=too_many)
    assert "dimensions must be at most 8, the model's own, got 9" in error_of(answer, 400, "dimensions")
    answer = api.post("/v1/jobs", json=unknown)
    assert "unknown prompt_name 'passage'; known are query" in error_of(answer, 400, "prompt_name")
    assert api.post("/v1/jobs", json={"inputs": ["a"], "dimensions": 8, "prompt_name": "query"}).status_code == 202


def test_head_that_cannot_be_read_is_answered_in_the_same_shape(api_stack: Stack) -> None:
    cases = {
        b"nonsense\r\n\r\n": 400,
        b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n": 414,
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X-%d: a\r\n" % n for n in range(80)) + b"\r\n": 431,
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 9000 + b"\r\n\r\n": 431,
        b"POST /v1/jobs HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: weird\r\n\r\n": 501,
    }
    for sent, status in cases.items():
        head, body = exchange(api_stack, sent)
        assert int(head.split()[1]) == status, head
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
        assert b"xxxx" not in body
        assert b"x-request-id: " in head


def exchange(stack: Stack, sent: bytes) -> tuple[bytes, bytes]:
    """Head and body of the answer to raw bytes, read until the server closes."""
    port = int(re.findall(r"\d+", stack.base_url)[-1])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(sent)
        received = b""
        while piece := connection.recv(65_536):
            received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    return head, body


def test_request_id_is_taken_over_or_made(api: httpx.Client) -> None:
    assert api.get("/healthz", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = {api.get("/healthz", headers={"x-request-id": "not one"}).headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2
    assert "not one" not in made
    assert api.get("/nope", headers={"x-request-id": "mine-2"}).headers["x-request-id"] == "mine-2"
