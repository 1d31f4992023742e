"""Vectors that were computed before are not computed again, when `CACHE_BYTES` allows some memory for them.

Whatever goes wrong here costs time and nothing else: the text is embedded.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from itertools import islice

from core.errors import LedgerUnavailable
from core.jobs import JobOptions
from core.ledger import ClaimedShard, Ledger
from core.ledger.cache import Entries, Entry
from worker.engines import EngineFacts
from worker.log import log
from worker.work import Work

LAYOUT = 1
"""Of what a digest is made of, and of entries: a change of it makes those that are there useless."""
DIGEST_BYTES = 16

UNKNOWN = "unknown"
"""The revision of a model that cannot tell: its vectors may be another's by tomorrow."""

SIDES = {"end": "end", "error": "end", "start": "start"}
"""What is kept of texts that are too long, by the job's `truncate`; other jobs go without the cache."""

COMPLAIN_SECONDS = 60.0


class Cache:
    """What one engine's vectors are looked up in and kept in. Without `limit_bytes` it does nothing."""

    def __init__(self, ledger: Ledger, facts: EngineFacts, limit_bytes: int) -> None:
        self._entries = Entries(ledger, limit_bytes) if limit_bytes and facts.revision != UNKNOWN else None
        self._facts = facts
        self._vector_bytes = 4 * facts.dimensions
        self._complained = -COMPLAIN_SECONDS
        self.hits = 0
        """Inputs that were found so far."""

    def fill(self, works: Sequence[Work]) -> None:
        """Give inputs their vectors, where they are known: one round trip for all of them."""
        if self._entries is None:
            return
        for work in works:
            work.digests = self._digests(work.shard)
        wanted = [digest for work in works for digest in work.digests]
        if not wanted:
            return
        try:
            found = iter(self._entries.find(wanted))
        except LedgerUnavailable as error:
            self._complain(error)
            return
        for work in works:
            known = {
                position: entry
                for position, entry in enumerate(islice(found, len(work.digests)))
                if entry is not None and self._serves(entry, work.shard.options)
            }
            work.recall(known)
            self.hits += len(known)

    def keep(self, works: Iterable[Work]) -> None:
        """Add what was computed for these, once it is stored, and note what was found."""
        if self._entries is None:
            return
        new, used = dict[bytes, Entry](), list[bytes]()
        for work in works:
            used += [work.digests[position] for position in work.recalled]
            for position, vector in work.raw.items():
                new[work.digests[position]] = Entry(vector, work.tokens[position], position in work.truncated)
        if new or used:
            try:
                self._entries.keep(new, used)
            except LedgerUnavailable as error:
                self._complain(error)

    def shrink(self) -> None:
        """Make room where jobs need it, or the limit is lower than it was."""
        if self._entries is not None:
            try:
                while self._entries.keep({}):
                    pass
            except LedgerUnavailable as error:
                self._complain(error)

    def _digests(self, shard: ClaimedShard) -> list[bytes]:
        """What the vector of each input follows from, and whose it is: a tenant must not learn what others have embedded."""
        facts, options = self._facts, shard.options
        side = SIDES.get(options.truncate)
        if side is None:
            return []
        prompt = facts.prompts[options.prompt_name] if options.prompt_name else ""
        model = [facts.model, facts.revision, facts.engine, facts.dtype, facts.dimensions, facts.max_tokens]
        head = hashlib.blake2b(json.dumps([LAYOUT, shard.tenant, *model, prompt, side]).encode(), digest_size=DIGEST_BYTES)
        digests = []
        for item in shard.inputs:
            digest = head.copy()
            digest.update(item.text.encode())
            digests.append(digest.digest())
        return digests

    def _serves(self, entry: Entry, options: JobOptions) -> bool:
        """Whether it can stand for the text: not for one that is too long and has to fail."""
        return len(entry.vector) == self._vector_bytes and not (entry.truncated and options.truncate == "error")

    def _complain(self, error: LedgerUnavailable) -> None:
        now = time.monotonic()
        if now - self._complained >= COMPLAIN_SECONDS:
            self._complained = now
            log.warning("going on without the cache: %s", error)
