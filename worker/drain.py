"""Work through a queue: claim shards, embed their inputs in batches, commit each shard when it is whole.

Three things happen at the same time, so that the device waits for neither Redis nor the tokenizer: this thread embeds a
batch, one thread claims and tokenises what comes next, and one commits what is whole.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from core.batching import batches
from core.budget import TokenBudget
from core.config import Settings
from core.errors import OutOfMemory
from core.jobs import Lane
from core.ledger import Ledger
from core.recovery import Step, next_step
from worker.engines import Engine, Tokens
from worker.leases import Leases
from worker.log import log
from worker.work import Item, Work

CLAIM_SECONDS = 1.0
"""Work in one claim, roughly: enough to sort inputs by length, little enough to lose."""
LEAST_CLAIM_BYTES = 16_384
BYTES_PER_TOKEN = 4

AHEAD_SECONDS = 1.0
"""How long bulk work is claimed ahead before the worker asks again for what is due: suspects wait that long at most."""

MOST_COMMITS = 4
"""Commits on their way before the worker waits for the oldest."""


@dataclass
class Prepared:
    """Claimed shards, their inputs tokenised."""

    works: list[Work]
    items: list[Item]
    lane: Lane | None
    alone: bool


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
        linger_seconds: float,
    ) -> None:
        self.engine = engine
        self.ledger = ledger
        self.settings = settings
        self.worker = worker
        self.busy = False
        self._wake = wake
        self._stopping = stopping
        self._linger_seconds = linger_seconds
        self._budget = TokenBudget(engine.facts.budget_tokens, engine.facts.max_tokens, settings.batch_seconds)
        self._inputs = 0
        self._tokens = 0
        self._padded = 0
        self._batches = 0
        self._out_of_memory = 0
        self._seconds = 0.0
        self._leases = Leases(ledger, worker, settings.lease_seconds)
        self._preparing = ThreadPoolExecutor(1, "prepare")
        self._committing = ThreadPoolExecutor(1, "commit")
        self._commits: list[Future[None]] = []

    def figures(self) -> dict[str, Any]:
        """What this process has done so far, for its report."""
        return {
            "inputs": self._inputs,
            "inputs_per_second": round(self._inputs / self._seconds, 1) if self._seconds else 0.0,
            "batches": self._batches,
            "tokens": self._tokens,
            "padding_share": round(1 - self._tokens / self._padded, 4) if self._padded else 0.0,
            "tokens_per_second": round(self._budget.tokens_per_second),
            "budget_tokens": self._budget.tokens,
            "out_of_memory": self._out_of_memory,
        }

    def run(self, queue: str) -> None:
        """Work until the queue stays empty for a moment, the time is over or the worker is told to stop."""
        self.busy = True
        try:
            self._run(queue, time.monotonic() + self.settings.drain_seconds)
        finally:
            self._leases.drop_all()
            self.busy = False
        if self.ledger.release(queue, self.worker):
            self._wake(queue)

    def _run(self, queue: str, deadline: float) -> None:
        following: Future[Prepared] | None = None
        asked = 0.0
        try:
            while True:
                prepared = following.result() if following else None
                following = None
                goes_on = not self._stopping() and time.monotonic() < deadline
                if not (prepared and prepared.works):
                    if not goes_on:
                        return
                    asked = time.monotonic()
                    prepared = self._prepare(queue)
                    if not prepared.works:
                        if not self.ledger.await_work(queue, seconds=self._linger_seconds):
                            return
                        continue
                if prepared.alone:  # it may take the process down, so nothing else is held beside it
                    self._await_commits(0)
                elif goes_on and time.monotonic() - asked < AHEAD_SECONDS:
                    following = self._preparing.submit(self._prepare, queue, Lane.BULK)
                self._compute(queue, prepared)
        finally:
            self._await_commits(0)
            if following:
                self._give_back(queue, following.result().works)

    # Claim and tokenise ---------------------------------------------------------------------------------------------

    def _prepare(self, queue: str, lane: Lane | None = None) -> Prepared:
        claim = self.ledger.claim(
            queue, self.worker, lease_seconds=self.settings.lease_seconds, max_bytes=self._claim_bytes(), lane=lane
        )
        if claim.wake:
            self._wake(queue)
        works = [Work(shard, self.engine.facts.dimensions) for shard in claim.shards]
        self._leases.hold(queue, works)
        try:
            items = [item for work in works if self._take_up(queue, work) for item in self._tokenize(work)]
        except BaseException:
            self._leases.drop(works)
            raise
        return Prepared(works, items, claim.lane, claim.alone)

    def _claim_bytes(self) -> int:
        tokens = max(self._budget.tokens, int(self._budget.tokens_per_second * CLAIM_SECONDS))
        return max(LEAST_CLAIM_BYTES, tokens * BYTES_PER_TOKEN)

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
        return step is Step.RUN

    def _tokenize(self, work: Work) -> list[Item]:
        """The shard's inputs that can be embedded; the others fail here."""
        options, facts = work.shard.options, self.engine.facts
        if options.prompt_name is not None and options.prompt_name not in facts.prompts:
            known = ", ".join(facts.prompts) or "none"
            work.fail_all("unknown_prompt", f"the model has no prompt {options.prompt_name!r}; it has: {known}")
            return []
        if options.dimensions is not None and options.dimensions > facts.dimensions:
            work.fail_all("dimensions_too_large", f"dimensions {options.dimensions} is more than the model's {facts.dimensions}")
            return []
        items = []
        texts = [item.text for item in work.shard.inputs]
        for position, tokens in enumerate(self.engine.tokenize(texts, options.prompt_name)):
            if tokens.truncated and options.truncate == "error":
                work.fail(position, "text_too_long", f"the text has more tokens than the model's maximum of {facts.max_tokens}")
                continue
            work.tokens[position] = len(tokens.ids)
            if tokens.truncated:
                work.truncated.add(position)
            items.append(Item(work, position, tokens))
        return items

    # Embed ----------------------------------------------------------------------------------------------------------

    def _compute(self, queue: str, prepared: Prepared) -> None:
        try:
            self._commit_whole(queue, prepared.works)
            for batch in self._cut(prepared.items):
                if self._stopping():
                    return
                interactive_waits = self._leases.look(queue)
                if interactive_waits and prepared.lane is Lane.BULK and not prepared.alone:
                    self._preempt(queue)
                self._embed([item for item in batch if not item.work.lost])
                self._commit_whole(queue, dict.fromkeys(item.work for item in batch))
        finally:
            unfinished = [work for work in prepared.works if not work.on_its_way]
            if self._stopping():
                self._give_back(queue, unfinished)
            else:
                self._leases.drop(unfinished)

    def _preempt(self, queue: str) -> None:
        """Interactive work that came meanwhile goes first; one batch of bulk work follows before the next look."""
        prepared = self._prepare(queue, Lane.INTERACTIVE)
        if prepared.works:
            self._compute(queue, prepared)

    def _cut(self, items: Sequence[Item]) -> Iterable[list[Item]]:
        """Batches within the token budget. Inputs of one batch agree in the tokens that pooling leaves out."""
        by_prompt: dict[int, list[Item]] = {}
        for item in items:
            by_prompt.setdefault(item.tokens.prompt_tokens, []).append(item)
        for group in by_prompt.values():
            for batch in batches([len(item.tokens.ids) for item in group], self._budget.tokens):
                yield [group[index] for index in batch]

    def _embed(self, batch: list[Item]) -> None:
        """Embed a batch and hand out its vectors. A batch that fails is halved until the input at fault fails alone."""
        if not batch:
            return
        tokens = [item.tokens for item in batch]
        padded = max(len(item.ids) for item in tokens) * len(tokens)
        started = time.perf_counter()
        try:
            vectors = self.engine.embed(tokens)
        except OutOfMemory as error:
            self._out_of_memory += 1
            self.engine.free_memory()
            self._budget.ran_out(padded)
            log.warning("out of memory with a batch of %d tokens; the budget is now %d", padded, self._budget.tokens)
            self._retry(batch, "out_of_memory", error.message, retryable=True)
        except Exception as error:
            log.warning("a batch of %d inputs failed", len(batch), exc_info=True)
            self._retry(batch, "embedding_failed", f"the model raised {type(error).__name__}", retryable=False)
        else:
            self._count(tokens, padded, time.perf_counter() - started)
            rows: dict[Work, list[int]] = {}
            for row, item in enumerate(batch):
                rows.setdefault(item.work, []).append(row)
            for work, found in rows.items():
                work.succeed([batch[row].position for row in found], vectors[found])

    def _count(self, batch: Sequence[Tokens], padded: int, seconds: float) -> None:
        self._budget.succeeded(padded, seconds)
        self._inputs += len(batch)
        self._tokens += sum(len(item.ids) for item in batch)
        self._padded += padded
        self._batches += 1
        self._seconds += seconds

    def _retry(self, batch: list[Item], code: str, message: str, *, retryable: bool) -> None:
        if len(batch) == 1:
            batch[0].work.fail(batch[0].position, code, message, retryable=retryable)
            return
        half = len(batch) // 2
        self._embed(batch[:half])
        self._embed(batch[half:])

    # Commit ---------------------------------------------------------------------------------------------------------

    def _commit_whole(self, queue: str, works: Iterable[Work]) -> None:
        """Have the shards that are whole stored, in the background."""
        whole = [work for work in works if not (work.missing or work.lost or work.on_its_way)]
        if not whole:
            return
        self._await_commits(MOST_COMMITS)
        for work in whole:
            work.on_its_way = True
        self._commits.append(self._committing.submit(self._commit, queue, whole))

    def _commit(self, queue: str, works: list[Work]) -> None:
        facts = self.engine.facts
        try:
            self.ledger.commit(
                queue,
                [work.committed() for work in works],
                device=facts.device,
                engine=facts.engine,
                dtype=facts.dtype,
                revision=facts.revision,
            )
        finally:
            self._leases.drop(works)

    def _await_commits(self, most: int) -> None:
        """Returns when at most so many commits are on their way; raises what one of them raised."""
        while len(self._commits) > most:
            self._commits.pop(0).result()

    def _give_back(self, queue: str, works: Iterable[Work]) -> None:
        """Release shards that were not embedded, so that others take them at once and no attempt is counted."""
        kept = [work for work in works if not work.lost]
        self._leases.drop(works)
        if kept:
            self.ledger.release(queue, self.worker, [work.shard for work in kept])
