"""Work through a queue: claim shards, embed their inputs in batches, commit each shard when it is whole."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from core.batching import batches
from core.blocks import ResultBlock
from core.config import Settings
from core.errors import LedgerUnavailable, OutOfMemory
from core.jobs import InputError
from core.ledger import Claim, ClaimedShard, Committed, Ledger
from core.recovery import Step, next_step
from worker.engines import Engine, Tokens
from worker.log import log

CLAIM_BATCHES = 8
"""Batches' worth of text in one claim: enough to sort inputs by length, little enough to lose."""
BYTES_PER_TOKEN = 4
CHECK_SECONDS = 0.05
"""How often, at most, the worker asks between batches whether its shards were cancelled."""

Vectors = np.ndarray[Any, np.dtype[np.float32]]


class Work:
    """A claimed shard and what is known of its result so far."""

    def __init__(self, shard: ClaimedShard, dimensions: int) -> None:
        self.shard = shard
        self.dimensions = min(shard.options.dimensions or dimensions, dimensions)
        self.vectors: Vectors = np.full((shard.span.count, self.dimensions), np.nan, dtype="<f4")
        self.tokens = [0] * shard.span.count
        self.truncated: set[int] = set()
        self.errors: dict[int, InputError] = {}
        self.missing = shard.span.count
        self.lost = False

    def succeed(self, position: int, vector: Vectors) -> None:
        """Take the model's vector of the input at `position`: cut to the job's dimensions, then scaled to unit length."""
        vector = vector[: self.dimensions].astype("<f4")
        if self.shard.options.normalize:
            vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
        if np.isfinite(vector).all():
            self.vectors[position] = vector
            self.missing -= 1
        else:
            self.fail(position, "not_finite", "the model gave a vector with infinite or undefined numbers")

    def fail(self, position: int, code: str, message: str, *, retryable: bool = False) -> None:
        self.errors[position] = InputError(self.shard.span.first + position, code, message, retryable)
        self.missing -= 1

    def fail_all(self, code: str, message: str) -> None:
        for position in range(self.shard.span.count):
            self.fail(position, code, message)

    def committed(self) -> Committed:
        ids = tuple(item.id for item in self.shard.inputs)
        return Committed(
            self.shard,
            ResultBlock(
                dimensions=self.dimensions,
                vectors=self.vectors.tobytes(),
                tokens=tuple(self.tokens),
                truncated=frozenset(self.truncated),
                errors=self.errors,
                ids=ids if any(ids) else None,
            ),
        )


@dataclass
class Item:
    """One tokenised input and where its vector goes."""

    work: Work
    position: int
    tokens: Tokens


@dataclass
class Leases:
    """The shards this process holds, renewed by a thread while it lives."""

    ledger: Ledger
    worker: str
    seconds: float
    held: dict[Work, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _checked: float = 0.0

    def start(self) -> None:
        threading.Thread(target=self._keep_renewing, name="leases", daemon=True).start()

    def hold(self, queue: str, works: Iterable[Work]) -> None:
        with self._lock:
            self.held |= dict.fromkeys(works, queue)

    def drop(self, works: Iterable[Work]) -> None:
        with self._lock:
            for work in works:
                self.held.pop(work, None)

    def check(self) -> None:
        """Renew now, unless that was just done; marks what was cancelled or went to another worker."""
        if time.monotonic() - self._checked >= CHECK_SECONDS:
            self.renew()

    def renew(self) -> None:
        with self._lock:
            held = dict(self.held)
        for queue in set(held.values()):
            works = [work for work, at in held.items() if at == queue]
            kept = self.ledger.extend(queue, self.worker, [work.shard for work in works], lease_seconds=self.seconds)
            for work, mine in zip(works, kept, strict=True):
                work.lost = work.lost or not mine
        self._checked = time.monotonic()

    def _keep_renewing(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(self.seconds / 3)
            try:
                self.renew()
            except LedgerUnavailable as error:
                log.warning("could not renew leases: %s", error)


class Drain:
    """Works through queues with one engine. `stopping` is asked between batches; `wake` sends a message for idle workers."""

    def __init__(
        self,
        engine: Engine,
        ledger: Ledger,
        settings: Settings,
        worker: str,
        *,
        wake: Callable[[str], None],
        stopping: Callable[[], bool],
    ) -> None:
        self.engine = engine
        self.ledger = ledger
        self.settings = settings
        self.worker = worker
        self.busy = False
        self._wake = wake
        self._stopping = stopping
        self._budget_tokens = engine.facts.budget_tokens
        self._inputs = 0
        self._seconds = 0.0
        self._leases = Leases(ledger, worker, settings.lease_seconds)
        self._leases.start()

    def figures(self) -> dict[str, Any]:
        """What this process has done so far, for its report."""
        rate = self._inputs / self._seconds if self._seconds else 0.0
        return {"inputs": self._inputs, "inputs_per_second": round(rate, 1), "budget_tokens": self._budget_tokens}

    def run(self, queue: str) -> None:
        """Work until the queue is empty, the time is over or the worker is told to stop."""
        self.busy = True
        started = time.monotonic()
        try:
            while not self._stopping() and time.monotonic() - started < self.settings.drain_seconds:
                claim = self._claim(queue)
                if not claim.shards:
                    return
                self._work(queue, claim, may_preempt=True)
            if self.ledger.release(queue, self.worker):
                self._wake(queue)
        finally:
            self.busy = False
            self._seconds += time.monotonic() - started

    def _claim(self, queue: str, *, interactive_only: bool = False) -> Claim:
        claim = self.ledger.claim(
            queue,
            self.worker,
            lease_seconds=self.settings.lease_seconds,
            max_bytes=self._budget_tokens * BYTES_PER_TOKEN * CLAIM_BATCHES,
            interactive_only=interactive_only,
        )
        if claim.wake:
            self._wake(queue)
        return claim

    def _work(self, queue: str, claim: Claim, *, may_preempt: bool) -> None:
        works = [Work(shard, self.engine.facts.dimensions) for shard in claim.shards]
        self._leases.hold(queue, works)
        try:
            items = [item for work in works if self._take_up(queue, work) for item in self._tokenize(work)]
            self._commit(queue, works)
            for batch in self._batches(items):
                if self._stopping():
                    return
                if may_preempt:
                    self._preempt(queue)
                self._leases.check()
                self._embed([item for item in batch if not item.work.lost])
                self._commit(queue, {id(item.work): item.work for item in batch}.values())
        finally:
            self._leases.drop(works)
            unfinished = [work.shard for work in works if work.missing and not work.lost]
            if unfinished and self._stopping():
                self.ledger.release(queue, self.worker, unfinished)

    def _preempt(self, queue: str) -> None:
        """Interactive work that came meanwhile goes first; one batch of bulk work follows before the next look."""
        claim = self._claim(queue, interactive_only=True)
        if claim.shards:
            self._work(queue, claim, may_preempt=False)

    def _take_up(self, queue: str, work: Work) -> bool:
        """Whether to embed the shard; one that killed workers before is divided or fails instead."""
        shard = work.shard
        step = next_step(shard.attempt, shard.span.count, self.settings.max_attempts)
        if step is Step.DIVIDE:
            log.warning("job %s: shard %s died %d times, its inputs go one by one", shard.job_id, shard.span, shard.attempt - 1)
            self.ledger.divide(queue, shard)
            work.lost = True
        elif step is Step.FAIL:
            died = shard.attempt - 1
            log.error("job %s: input %d fails, its worker died %d times", shard.job_id, shard.span.first, died)
            work.fail_all("worker_died", f"the worker died {died} times while it embedded this input")
        return step is not Step.DIVIDE

    def _tokenize(self, work: Work) -> list[Item]:
        """The shard's inputs that can be embedded; the others fail here."""
        options, facts = work.shard.options, self.engine.facts
        if not work.missing:
            return []
        if options.prompt_name is not None and options.prompt_name not in facts.prompts:
            known = ", ".join(facts.prompts) or "none"
            work.fail_all("unknown_prompt", f"the model has no prompt {options.prompt_name!r}; it has: {known}")
            return []
        if options.dimensions is not None and options.dimensions > facts.dimensions:
            work.fail_all("dimensions_too_large", f"dimensions {options.dimensions} is more than the model's {facts.dimensions}")
            return []
        items = []
        for position, tokens in enumerate(self.engine.tokenize([item.text for item in work.shard.inputs], options.prompt_name)):
            if tokens.truncated and options.truncate == "error":
                work.fail(position, "text_too_long", f"the text has more tokens than the model's maximum of {facts.max_tokens}")
                continue
            work.tokens[position] = len(tokens.ids)
            if tokens.truncated:
                work.truncated.add(position)
            items.append(Item(work, position, tokens))
        return items

    def _batches(self, items: list[Item]) -> Iterable[list[Item]]:
        """Batches within the token budget as it is when each is taken (it shrinks when memory runs out)."""
        by_prompt: dict[int, list[Item]] = {}
        for item in items:
            by_prompt.setdefault(item.tokens.prompt_tokens, []).append(item)
        for group in by_prompt.values():
            for batch in batches([len(item.tokens.ids) for item in group], self._budget_tokens):
                yield [group[index] for index in batch]

    def _embed(self, batch: list[Item]) -> None:
        """Embed a batch and hand out its vectors. A batch that fails is halved until the input at fault fails alone."""
        if not batch:
            return
        try:
            vectors = self.engine.embed([item.tokens for item in batch])
        except OutOfMemory as error:
            self.engine.free_memory()
            self._shrink(batch)
            self._retry(batch, "out_of_memory", error.message, retryable=True)
        except Exception as error:
            log.warning("a batch of %d inputs failed", len(batch), exc_info=True)
            self._retry(batch, "embedding_failed", f"the model raised {type(error).__name__}", retryable=False)
        else:
            self._inputs += len(batch)
            for item, vector in zip(batch, vectors, strict=True):
                item.work.succeed(item.position, vector)

    def _shrink(self, batch: Sequence[Item]) -> None:
        used = max(len(item.tokens.ids) for item in batch) * len(batch)
        self._budget_tokens = max(self.engine.facts.max_tokens, min(self._budget_tokens, used) // 2)
        log.warning("out of memory with a batch of %d tokens; the token budget is now %d", used, self._budget_tokens)

    def _retry(self, batch: list[Item], code: str, message: str, *, retryable: bool) -> None:
        if len(batch) == 1:
            batch[0].work.fail(batch[0].position, code, message, retryable=retryable)
            return
        half = len(batch) // 2
        self._embed(batch[:half])
        self._embed(batch[half:])

    def _commit(self, queue: str, works: Iterable[Work]) -> None:
        """Store the shards that are whole."""
        whole = [work for work in works if not work.missing and not work.lost and work in self._leases.held]
        facts = self.engine.facts
        self.ledger.commit(
            queue,
            [work.committed() for work in whole],
            device=facts.device,
            engine=facts.engine,
            dtype=facts.dtype,
            revision=facts.revision,
        )
        self._leases.drop(whole)
