"""One API for each module of API tests: starting one takes longer than most of the tests."""

from collections.abc import Iterator

import httpx
import pytest
import redis

from core.ledger import Ledger, connect
from launcher.redis_server import RedisServer
from tests.conftest import QUICK
from tests.ledger_driver import Driver
from tests.processes import Stack, running_stack


@pytest.fixture(scope="module")
def api_environ() -> dict[str, str]:
    """Settings of the module's API; a module overrides this for others."""
    return {}


@pytest.fixture(scope="module")
def api_stack(tmp_path_factory: pytest.TempPathFactory, api_environ: dict[str, str]) -> Iterator[Stack]:
    """A running API on a Redis server of the module's own."""
    folder = tmp_path_factory.mktemp("api")
    with RedisServer(folder / "redis", {"appendfsync": "no"}) as server:
        for stack in running_stack(server.url, folder, QUICK | api_environ):
            stack.api()
            yield stack


@pytest.fixture(scope="module")
def client(api_stack: Stack) -> Iterator[httpx.Client]:
    """A client of the module's API."""
    with httpx.Client(base_url=api_stack.base_url, timeout=60) as found:
        yield found


@pytest.fixture
def api(client: httpx.Client, api_stack: Stack) -> httpx.Client:
    """The same, and the ledger is empty. Not for a module whose stack has a worker, which would lose its place."""
    with redis.Redis.from_url(api_stack.redis_url) as server:
        server.flushall()
    return client


@pytest.fixture
def api_ledger(api_stack: Stack) -> Ledger:
    """The ledger of the module's API."""
    return Ledger(connect(api_stack.redis_url, timeout_seconds=5, retries=2), "vector-api:")


@pytest.fixture
def driver(api_ledger: Ledger) -> Driver:
    """Does a worker's part by hand, where a test needs a job that is half done."""
    return Driver(api_ledger)
