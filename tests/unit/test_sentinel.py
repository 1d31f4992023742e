"""URLs of a Redis behind sentinels, for redis-py and for Celery."""

import pytest

from core.config import Settings
from core.queues import broker
from core.sentinel import SentinelUrl


def test_parts_are_found_and_the_password_is_not_shown() -> None:
    found = SentinelUrl.parse("redis+sentinel://me:p%2Fa%40s@one:1,[::1]:2,three/texts/5")
    assert found == SentinelUrl((("one", 1), ("::1", 2), ("three", 26379)), "texts", 5, "me", "p/a@s")
    assert str(found) == "redis+sentinel://one:1,[::1]:2,three:26379/texts/5"


def test_database_and_login_may_be_left_out() -> None:
    assert SentinelUrl.parse("redis+sentinel://one/texts") == SentinelUrl((("one", 26379),), "texts", 0, None, None)


@pytest.mark.parametrize("url", ["redis://one:1/0", "rediss://one", "unix:///tmp/redis.sock?db=0"])
def test_other_urls_are_none(url: str) -> None:
    assert SentinelUrl.parse(url) is None


@pytest.mark.parametrize("url", ["one:0/texts", "one:x/texts", "one,/texts", "/texts", "one:1", "one:1/texts/x"])
def test_url_without_a_part_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        SentinelUrl.parse(f"redis+sentinel://{url}")


def test_celery_gets_every_sentinel_with_login_and_database() -> None:
    url, options = broker(Settings(redis_url="redis+sentinel://:p%2Fa%40s@one:1,two/texts/5"))
    assert url == "sentinel://:p%2Fa%40s@one:1/5;sentinel://:p%2Fa%40s@two:26379/5"
    assert options["master_name"] == "texts"
    url, options = broker(Settings(redis_url="redis+sentinel://one/texts"))
    assert url == "sentinel://one:26379/0"
    assert "master_name" not in broker(Settings())[1]
