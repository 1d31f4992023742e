"""The cache: vectors of texts that were embedded before, under a digest of all that they follow from.

    python -m core.ledger.cache          says how much it holds
    python -m core.ledger.cache clear    empties it

`core.ledger` maps its two keys, `cache.lua` keeps them within a limit. What a digest is made of is the worker's affair.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgpack

from core.config import Settings
from core.errors import VectorApiError
from core.ledger.ledger import Ledger, _translated, connect

AT_ONCE = 256
"""Entries in one command: Redis answers nobody else meanwhile."""


@dataclass(frozen=True)
class Entry:
    """What is known of a text. `vector` is as the model gives it: float32, little-endian."""

    vector: bytes
    tokens: int
    truncated: bool

    def pack(self) -> bytes:
        packed: bytes = msgpack.packb((self.tokens, self.truncated, self.vector))
        return packed


def unpack(block: bytes | None) -> Entry | None:
    """The entry, or None when there is none that can be read."""
    if block is None:
        return None
    try:
        tokens, truncated, vector = msgpack.unpackb(block)
    except (ValueError, TypeError, msgpack.UnpackException):
        return None
    return Entry(vector, tokens, truncated) if isinstance(vector, bytes) and isinstance(tokens, int) else None


class Entries:
    """The cache's entries in Redis.

    Raises:
        LedgerUnavailable: from every method, when Redis is out of reach, full or refuses.
    """

    def __init__(self, ledger: Ledger, limit_bytes: int) -> None:
        self._redis = ledger._redis
        self._run = ledger._run
        self._limit_bytes = limit_bytes
        self._keys = ledger._key("cache"), ledger._key("cache", "used")

    @_translated
    def find(self, digests: Sequence[bytes]) -> list[Entry | None]:
        """The entry of each digest, if there is one. One round trip, which writes nothing."""
        with self._redis.pipeline(transaction=False) as pipe:
            for start in range(0, len(digests), AT_ONCE):
                pipe.hmget(self._keys[0], list(digests[start : start + AT_ONCE]))
            return [unpack(block) for found in pipe.execute() for block in found]

    @_translated
    def keep(self, entries: Mapping[bytes, Entry], used: Sequence[bytes] = ()) -> int:
        """Add entries as far as there is room, in place of those that were not used for longest, and note which were used.

        Returns how many went; without arguments it only makes the cache as small as it has to be, by steps: again until 0.
        """
        new, dropped = list(entries.items()), 0
        for start in range(0, max(1, len(new), len(used)), AT_ONCE):
            some = used[start : start + AT_ONCE]
            blocks = [part for digest, entry in new[start : start + AT_ONCE] for part in (digest, entry.pack())]
            dropped += int(self._run("cache", self._limit_bytes, len(some), *some, *blocks))
        return dropped

    @_translated
    def size(self) -> tuple[int, int]:
        """How many entries there are, and the bytes that are counted for them."""
        return self._redis.zcard(self._keys[1]), int(self._redis.hget(self._keys[0], "bytes") or 0)

    @_translated
    def clear(self) -> None:
        """Drop all of them."""
        self._redis.unlink(*self._keys)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m core.ledger.cache", description="The cache of vectors in Redis.")
    parser.add_argument("action", nargs="?", choices=["show", "clear"], default="show")
    action = parser.parse_args().action
    try:
        settings = Settings.from_env()
        client = connect(settings.redis_url, timeout_seconds=5, retries=1)
        entries = Entries(Ledger(client, settings.redis_prefix), settings.cache_bytes)
        count, held_bytes = entries.size()
        if action == "clear":
            entries.clear()
    except VectorApiError as error:
        print(f"vector-api: {error.message}", file=sys.stderr)
        return 1
    print(f"{count} vectors in {held_bytes} bytes{', removed' if action == 'clear' else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
