"""One suite, two servers: every test that takes `at` runs on fakeredis, which needs nothing, and on a real server."""

from collections.abc import Iterator

import fakeredis
import pytest
import redis

from core.ledger import connect
from tests.ledger.scenario import Scenario


@pytest.fixture(params=["fakeredis", pytest.param("server", marks=pytest.mark.integration)])
def client(request: pytest.FixtureRequest) -> Iterator[redis.Redis]:
    """An empty Redis."""
    if request.param == "fakeredis":
        with fakeredis.FakeRedis(server=fakeredis.FakeServer()) as found:
            yield found
    else:
        with connect(request.getfixturevalue("redis_url"), timeout_seconds=5, retries=0) as found:
            yield found


@pytest.fixture
def at(client: redis.Redis) -> Iterator[Scenario]:
    """A ledger on it. Whatever a test does, the keys must not contradict each other afterwards."""
    scenario = Scenario(client)
    yield scenario
    scenario.assert_consistent()
