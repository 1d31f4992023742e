from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from core import tracing
from core.ledger import Ledger, connect
from launcher.redis_server import RedisServer
from tests.processes import Stack, running_stack

QUICK = {"LEASE_SECONDS": "2", "WAKE_SECONDS": "0.5", "HEARTBEAT_SECONDS": "0.5"}
"""Short times, so that recovery tests are quick; everything else as in production."""


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One real server for the tests that leave it running."""
    with RedisServer(tmp_path_factory.mktemp("redis"), {"appendfsync": "no"}) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> Iterator[str]:
    """The shared server, empty."""
    with redis.Redis(unix_socket_path=redis_server.socket) as client:
        client.flushall()
        yield redis_server.url
        client.flushall()


@pytest.fixture
def ledger(redis_url: str) -> Ledger:
    return Ledger(connect(redis_url, timeout_seconds=5, retries=2), "vector-api:")


@pytest.fixture
def stack(redis_url: str, tmp_path: Path) -> Iterator[Stack]:
    """Processes with short times around the shared server; the test starts those it needs."""
    yield from running_stack(redis_url, tmp_path, QUICK)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """The spans of this process, as they end."""
    found = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(found))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("tests"))
    monkeypatch.setattr(tracing, "_embedding", set())
    return found
