"""Addresses of a Redis whose master is found by asking sentinels: `redis+sentinel://host:26379,host:26379/master/0`."""

from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, unquote, urlsplit

SCHEME = "redis+sentinel"
DEFAULT_PORT = 26379


@dataclass(frozen=True)
class SentinelUrl:
    """Where the sentinels are, which master is meant, and how to log in there. The sentinels themselves have no password."""

    sentinels: tuple[tuple[str, int], ...]
    master: str
    database: int
    username: str | None
    password: str | None

    @classmethod
    def parse(cls, url: str) -> Self | None:
        """The parts of such a URL; None for any other.

        Raises:
            ValueError: a part is missing or no number.
        """
        parts = urlsplit(url)
        if parts.scheme != SCHEME:
            return None
        _, _, places = parts.netloc.rpartition("@")
        sentinels = []
        for place in places.split(","):
            one = urlsplit(f"//{place}")
            if not one.hostname or one.port == 0:
                raise ValueError("no host")
            sentinels.append((one.hostname, one.port or DEFAULT_PORT))
        master, _, database = parts.path.strip("/").partition("/")
        if not master:
            raise ValueError("no master")
        login = [unquote(part) if part else None for part in (parts.username, parts.password)]
        return cls(tuple(sentinels), unquote(master), int(database or 0), *login)

    def __str__(self) -> str:
        """The URL without the password."""
        return f"{SCHEME}://{','.join(map(_place, self.sentinels))}/{self.master}/{self.database}"

    def broker_url(self) -> str:
        """The same in Celery's form: one URL for each sentinel, each with everything, as Celery takes turns with them."""
        login = ""
        if self.username or self.password:
            login = f"{quote(self.username or '', safe='')}:{quote(self.password or '', safe='')}@"
        return ";".join(f"sentinel://{login}{_place(sentinel)}/{self.database}" for sentinel in self.sentinels)


def _place(sentinel: tuple[str, int]) -> str:
    host, port = sentinel
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
