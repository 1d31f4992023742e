"""A ledger whose larger results lie in a result store: Redis then holds a reference to each.

What is written goes first to the store, under a key that no other write shares, and then into the ledger. The commit is still the
one moment at which a result counts, so the attempt number fences the store as well.
"""

from collections.abc import Sequence
from contextlib import suppress

import redis

from core.blocks import Reference, ResultBlock, pack_reference, unpack_result
from core.config import Settings
from core.errors import ResultLost, ResultStoreUnavailable
from core.ledger.ledger import Committed, Facts, Ledger, _milliseconds, _name, _packed, _text, _translated, connect, job_not_found
from core.result_store import ResultStore, new_key


def open_ledger(settings: Settings, *, timeout_seconds: float, retries: int, store_seconds: float) -> Ledger:
    """The ledger that the settings ask for. Opens no connection."""
    client = connect(settings.redis_url, timeout_seconds=timeout_seconds, retries=retries)
    if settings.result_store == "redis":
        return Ledger(client, settings.redis_prefix)
    store = ResultStore(settings.result_store, timeout_seconds=store_seconds, retries=1)
    return StoringLedger(client, settings.redis_prefix, store, min_bytes=settings.result_store_min_bytes)


class StoringLedger(Ledger):
    """A ledger that keeps result blocks of at least `min_bytes` in `store`.

    Raises:
        ResultStoreUnavailable: from `commit` and `result`, when the store fails.
        ResultLost: from `result`, when an object that the ledger refers to is not there or damaged.
    """

    def __init__(self, client: redis.Redis, prefix: str, store: ResultStore, *, min_bytes: int = 0) -> None:
        super().__init__(client, prefix)
        self.store = store
        self._min_bytes = min_bytes

    def _store(self, queue: str, finished: Sequence[Committed], facts: Facts) -> list[bool]:
        """When the store fails nothing is committed, and the caller still holds the shards."""
        blocks = [_packed(item) for item in finished]
        large = [n for n, block in enumerate(blocks) if block and len(block) >= self._min_bytes]
        held = self._announce(queue, [finished[n] for n in large])
        objects = {n: new_key(*_name(finished[n].shard)) for n, mine in zip(large, held, strict=True) if mine}
        self.store.put_all({key: blocks[n] for n, key in objects.items()})
        for n, key in objects.items():
            blocks[n] = pack_reference(Reference.to(key, blocks[n]))
        given_up = set(large) - set(objects)
        kept = [n for n in range(len(finished)) if n not in given_up]
        stored = dict(zip(kept, self._commit(queue, [finished[n] for n in kept], [blocks[n] for n in kept], facts), strict=True))
        for n, key in objects.items():
            if not stored[n]:
                self._discard(finished[n], blocks[n], key)
        return [stored.get(n, False) for n in range(len(finished))]

    @_translated
    def _announce(self, queue: str, finished: Sequence[Committed]) -> list[bool]:
        if not finished:
            return []
        names = [part for item in finished for part in _name(item.shard)]
        return [bool(held) for held in self._run("announce", queue, *names)]

    @_translated
    def _discard(self, item: Committed, packed: bytes, key: str) -> None:
        """Remove an object that was written for nothing.

        Not if the ledger refers to it: a commit that is repeated after a lost answer says that it stored nothing.
        """
        if self._redis.hget(self._key("vectors", item.shard.job_id), str(item.shard.span)) == packed:
            return
        with suppress(ResultStoreUnavailable):  # else it goes with the job
            self.store.remove(key)

    def _fetch(self, job_id: str, reference: Reference) -> ResultBlock:
        try:
            block = self.store.get(reference.key)
        except ResultLost:
            if self.status(job_id) is None:  # deleted between the two reads
                raise job_not_found(job_id) from None
            raise
        if not reference.fits(block):
            raise ResultLost(f"the object {reference.key} in the result store {self.store.url} is damaged")
        return unpack_result(block)

    @_translated
    def garbage(self, *, limit: int, retry_seconds: float) -> list[str]:
        """`<job>/<round>` whose objects are to be removed now; due again after `retry_seconds`, unless `forget` is called."""
        return [_text(member) for member in self._run("garbage", limit, _milliseconds(retry_seconds))]

    @_translated
    def forget(self, garbage: str) -> None:
        """The objects of this `<job>/<round>` are removed."""
        self._redis.zrem(self._key("garbage"), garbage)
