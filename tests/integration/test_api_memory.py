"""What one request of the worst kind costs the real API in memory: a small multiple of its bytes."""

import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from core.config import Settings
from tests.processes import Stack

pytestmark = pytest.mark.integration

MOST_TIMES = 8
"""What SECURITY.md promises."""

WIDE = '"😀'.encode() + b"x" * 150_000 + b'"'
"""A text that takes four bytes for each of its characters."""


@pytest.fixture(scope="module")
def api_environ() -> dict[str, str]:
    return {"EMBEDDINGS_WAIT_SECONDS": "0.1"}


def peak_bytes(stack: Stack) -> int:
    """The most memory that the process which answers has had since it was last asked."""
    (pid,) = stack.started[0].children()
    folder = Path(f"/proc/{pid}")
    found = re.search(r"VmHWM:\s+(\d+) kB", (folder / "status").read_text())
    assert found
    (folder / "clear_refs").write_text("5")
    return 1024 * int(found[1])


def filled(head: bytes, item: bytes, tail: bytes, size_bytes: int) -> bytes:
    return head + b",".join([item] * ((size_bytes - len(head) - len(tail)) // (len(item) + 1))) + tail


def send_json(api: httpx.Client, path: str, body: bytes) -> httpx.Response:
    return api.post(path, content=body, headers={"Content-Type": "application/json"})


def send_batch(api: httpx.Client, line: bytes) -> httpx.Response:
    sent = api.post("/v1/files", files={"file": ("a", line)}, data={"purpose": "batch"}).json()
    return api.post("/v1/batches", json={"input_file_id": sent["id"], "endpoint": "/v1/embeddings", "completion_window": "24h"})


WAYS: dict[str, tuple[bytes, bytes, Callable[[httpx.Client, bytes], httpx.Response]]] = {
    "embeddings": (b'{"input":[', b"]}", lambda api, body: send_json(api, "/v1/embeddings", body)),
    "job": (b'{"inputs":[', b"]}", lambda api, body: send_json(api, "/v1/jobs", body)),
    "metadata": (b'{"inputs":["a"],"metadata":{"a":[', b"]}}", lambda api, body: send_json(api, "/v1/jobs", body)),
    "batch": (b'{"body":{"input":[', b"]}}", send_batch),
}


ITEMS = [b"[]", b"{}", b'{"a":1}', b'"a"', b'"\\\\"', b"1.5", b"1000", WIDE]


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.decode()[:8])
@pytest.mark.parametrize("way", WAYS)
def test_body_takes_a_small_multiple_of_its_bytes(api: httpx.Client, api_stack: Stack, way: str, item: bytes) -> None:
    head, tail, send = WAYS[way]
    size_bytes = Settings().max_body_bytes
    before = peak_bytes(api_stack)
    answer = send(api, filled(head, item, tail, size_bytes))
    assert answer.status_code in (200, 202, 400, 503)
    grown = peak_bytes(api_stack) - before
    assert grown < MOST_TIMES * size_bytes, answer.text
