"""A job on its way in."""

from collections.abc import Iterator

import fakeredis
import pytest

from api.submission import stage
from core.config import Settings
from core.errors import RequestTooLarge
from core.ledger import Ledger
from core.sharding import Input


def test_job_that_may_not_wait_is_refused_before_it_has_come_whole() -> None:
    redis = fakeredis.FakeRedis()
    read: list[int] = []

    def inputs() -> Iterator[Input]:
        for n in range(1000):
            read.append(n)
            yield Input("a text of thirty characters xx")

    settings = Settings(max_waiting_bytes=5000, shard_inputs=1)
    with pytest.raises(RequestTooLarge, match=r"more than may wait at all: 5000 bytes \(MAX_WAITING_BYTES\)"):
        stage(Ledger(redis, "test:"), "job", inputs(), settings)
    assert len(read) < 500
    assert redis.keys() == []
    total, shards, rest = stage(Ledger(redis, "test:"), "job", inputs(), Settings(max_waiting_bytes=10**6, shard_inputs=1))
    assert (total, shards) == (1000, 1000)
    assert 0 < len(rest) < 1000
