"""Work through a queue: claim shards, embed their inputs in batches, commit each shard when it is whole.

Three things happen at the same time, so that the device waits for neither Redis nor the tokenizer: this thread embeds a
batch, one thread claims and tokenises what comes next, and one commits what is whole. A device that computes by itself (cuda) has
its next batch before the vectors of the last one are read.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from core import tracing
from core.batching import batches
from core.budget import TokenBudget
from core.config import Settings
from core.errors import DeviceLost, OutOfMemory
from core.jobs import JobOptions, Lane
from core.ledger import Ledger
from core.logs import withheld
from core.recovery import Step, next_step, why_it_failed
from core.tracing import NOTHING, Span
from worker.cache import Cache
from worker.engines import Engine, Tokens
from worker.histograms import Histograms
from worker.leases import Leases
from worker.log import log, of
from worker.watchdog import Calls
from worker.work import Item, Vectors, Work

CLAIM_SECONDS = 1.0
"""Work in one claim, roughly: enough to sort inputs by length, little enough to lose."""
LEAST_CLAIM_BYTES = 16_384
BYTES_PER_TOKEN = 4

AHEAD_SECONDS = 1.0
"""How long bulk work is claimed ahead before the worker asks again for what is due: suspects wait that long at most."""

MOST_COMMITS = 4
"""Commits on their way before the worker waits for the oldest."""

DEVICE_LOST = 4
"""Exit code of a process whose device failed."""


@dataclass
class Prepared:
    """Claimed shards, their inputs tokenised."""

    works: list[Work]
    items: list[Item]
    lane: Lane | None
    alone: bool
    span: Span


@dataclass
class Started:
    """A batch that the device computes; a call of `vectors` waits for it."""

    queue: str
    items: list[Item]
    vectors: Callable[[], Vectors]
    begun: float


class Drain:
    """Works through queues with one engine, whose model `settings` names. `stopping` is asked between batches; `wake` sends a
    message for idle workers."""

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
        self.cache = Cache(ledger, engine.facts, settings.cache_bytes)
        self.busy = False
        self.histograms = Histograms()
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
        self._last_batch: dict[str, Any] | None = None
        self._started: deque[Started] = deque()
        self._finished = 0.0
        self._leases = Leases(ledger, worker, settings.lease_seconds)
        self._calls = Calls()
        self._preparing = ThreadPoolExecutor(1, "prepare")
        self._committing = ThreadPoolExecutor(1, "commit")
        self._commits: list[Future[None]] = []

    def figures(self) -> dict[str, Any]:
        """What this process has done so far, for its report."""
        return {
            "inputs": self._inputs,
            "cached": self.cache.hits,
            "inputs_per_second": round(self._inputs / self._seconds, 1) if self._seconds else 0.0,
            "batches": self._batches,
            "tokens": self._tokens,
            "padding_tokens": self._padded - self._tokens,
            "padding_share": round(1 - self._tokens / self._padded, 4) if self._padded else 0.0,
            "tokens_per_second": round(self._budget.tokens_per_second),
            "budget_tokens": self._budget.tokens,
            "out_of_memory": self._out_of_memory,
            "last_batch": self._last_batch,
            "engine_call_seconds": round(self._calls.seconds(), 1),
        }

    def run(self, queue: str) -> None:
        """Work until the queue stays empty for a moment, the time is over or the worker is told to stop."""
        self.busy = True
        try:
            self._run(queue, time.monotonic() + self.settings.drain_seconds)
        finally:
            self._started.clear()
            self._leases.drop_all()
            self._calls.serve("")
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
                if not prepared.alone and goes_on and time.monotonic() - asked < AHEAD_SECONDS:
                    following = self._preparing.submit(self._prepare, queue, Lane.BULK)
                self._compute(queue, prepared)
        finally:
            try:
                self._await_commits(0)
            finally:
                if following:
                    prepared = following.result()
                    with prepared.span:
                        self._give_back(queue, prepared.works)

    # Claim and tokenise ---------------------------------------------------------------------------------------------

    def _prepare(self, queue: str, lane: Lane | None = None) -> Prepared:
        begun = time.perf_counter()
        claim = self.ledger.claim(
            queue, self.worker, lease_seconds=self.settings.lease_seconds, max_bytes=self._claim_bytes(), lane=lane
        )
        if claim.wake:
            self._wake(queue)
        self.histograms.count_waits(claim)
        works = [Work(shard, self.engine.facts.dimensions) for shard in claim.shards]
        self._leases.hold(queue, works)
        self._calls.serve(queue, claim.shards[0] if claim.alone else None)
        span = self._begin_span(queue, works, claim.lane, begun)
        try:
            taken_up = [work for work in works if self._take_up(queue, work)]
            self.cache.fill(taken_up)
            begun = time.perf_counter()
            items = [item for work in taken_up for item in self._tokenize(work)]
            span.record("tokenize", time.perf_counter() - begun, inputs=len(items))
            if items:
                self.histograms.stages["tokenize"].count(time.perf_counter() - begun)
        except BaseException as error:
            span.end(type(error).__name__)
            self._leases.drop(works, error)
            raise
        return Prepared(works, items, claim.lane, claim.alone, span)

    def _begin_span(self, queue: str, works: Sequence[Work], lane: Lane | None, begun: float) -> Span:
        """The span of what was claimed together, which all its works have. It ends when they are stored."""
        if not (works and tracing.is_on()):
            return NOTHING
        jobs = {work.shard.job_id for work in works}
        counts = {"jobs": len(jobs), "shards": len(works), "inputs": sum(work.shard.span.count for work in works)}
        traced = {work.shard.job_id: work.shard.traceparent for work in works if work.shard.traceparent}
        seconds = time.perf_counter() - begun
        span = tracing.begin_embedding(traced, seconds, worker=self.worker, queue=queue, lane=lane, **counts)
        for work in works:
            work.span = span
        return span

    def _claim_bytes(self) -> int:
        tokens = max(self._budget.tokens, int(self._budget.tokens_per_second * CLAIM_SECONDS))
        return max(LEAST_CLAIM_BYTES, tokens * BYTES_PER_TOKEN)

    def _take_up(self, queue: str, work: Work) -> bool:
        """Whether to embed the shard; one that killed workers before is divided or fails instead, an unreadable one fails."""
        shard = work.shard
        if shard.unreadable:
            log.error("job %s: shard %s fails: %s", shard.job_id, shard.span, shard.unreadable, extra=of([shard]))
            work.fail_all("unreadable_input", f"the inputs cannot be read: {shard.unreadable}")
            return False
        if shard.model != self.settings.model_name:
            message = f"the job asks for the model {shard.model}, the workers of its queue have {self.settings.model_name} by now"
            log.error("job %s: shard %s fails: %s", shard.job_id, shard.span, message, extra=of([shard]))
            work.fail_all("model_changed", message)
            return False
        step = next_step(shard.deaths, shard.span.count, self.settings.max_attempts)
        if step is Step.DIVIDE:
            what = "job %s: a worker died with shard %s alone, its inputs go one by one"
            log.warning(what, shard.job_id, shard.span, extra=of([shard]))
            self.ledger.divide(queue, shard)
            work.lost = True
        elif step is Step.FAIL:
            code, message = why_it_failed(shard.deaths, shard.hangs)
            log.error("job %s: input %d fails: %s", shard.job_id, shard.span.first, message, extra=of([shard]))
            work.fail_all(code, message)
        return step is Step.RUN and self._serves(work)

    def _serves(self, work: Work) -> bool:
        """Whether the model can do what the job asks for; else the shard fails."""
        options, facts = work.shard.options, self.engine.facts
        if options.prompt_name is not None and options.prompt_name not in facts.prompts:
            known = ", ".join(facts.prompts) or "none"
            work.fail_all("unknown_prompt", f"the model has no prompt {options.prompt_name!r}; it has: {known}")
            return False
        if options.dimensions is not None and options.dimensions > facts.dimensions:
            work.fail_all("dimensions_too_large", f"dimensions {options.dimensions} is more than the model's {facts.dimensions}")
            return False
        return True

    def _tokenize(self, work: Work) -> list[Item]:
        """The shard's inputs that are to be embedded; those that cannot be fail here."""
        options, facts = work.shard.options, self.engine.facts
        items = list[Item]()
        for position, chunks in self._tokens_of(work, work.positions):
            if options.dry_run and (len(chunks) != 1 or chunks[0].truncated):
                work.truncated.add(position)
            if not chunks:
                message = f"prompt and chunk_overlap leave too little room for the text in the model's {facts.max_tokens} tokens"
                work.fail(position, "no_room_for_text", message)
            elif chunks[0].truncated and options.truncate == "error":
                work.fail(position, "text_too_long", f"the text has more tokens than the model's maximum of {facts.max_tokens}")
            elif options.dry_run:
                work.count(position, chunks)
            else:
                items += work.take_up(position, chunks)
        return items

    def _tokens_of(self, work: Work, positions: Sequence[int]) -> Iterable[tuple[int, list[Tokens]]]:
        """The chunks of each input at these positions; one at which the tokenizer raises fails alone."""
        if not positions:
            return []
        texts = [work.shard.inputs[position].text for position in positions]
        try:
            with self._calls.watch():
                tokenized = self._in_chunks(texts, work.shard.options)
        except Exception as error:
            if len(positions) == 1:
                what = "job %s: an input cannot be tokenised"
                log.warning(what, work.shard.job_id, exc_info=withheld(error), extra=of([work.shard]))
                work.fail(positions[0], "embedding_failed", f"the tokenizer raised {type(error).__name__}")
                return []
            half = len(positions) // 2
            return [*self._tokens_of(work, positions[:half]), *self._tokens_of(work, positions[half:])]
        return zip(positions, tokenized, strict=True)

    def _in_chunks(self, texts: Sequence[str], options: JobOptions) -> list[list[Tokens]]:
        """Each text as what the job has of it embedded: all of it, its beginning, its end, or its chunks."""
        found = [[tokens] for tokens in self.engine.tokenize(texts, options.prompt_name)]
        longer = [position for position, (tokens,) in enumerate(found) if tokens.truncated]
        if longer and options.truncate in ("start", "chunk"):
            chunks = self.engine.chunks(
                [texts[position] for position in longer],
                options.prompt_name,
                overlap=options.chunk_overlap,
                only_last=options.truncate == "start",
            )
            for position, of_text in zip(longer, chunks, strict=True):
                found[position] = of_text
        return found

    # Embed ----------------------------------------------------------------------------------------------------------

    def _compute(self, queue: str, prepared: Prepared) -> None:
        try:
            if prepared.alone:  # it may take the process down, so nothing else is held beside it
                self._await_commits(0)
            self._commit_whole(queue, prepared.works)
            for batch in self._cut(prepared.items):
                if self._stopping():
                    break
                interactive_waits = self._leases.look(queue)
                if interactive_waits and prepared.lane is Lane.BULK and not prepared.alone:
                    self._preempt(queue)
                self._start(queue, [item for item in batch if not (item.work.lost or item.failed)])
            self._finish(0)
        except BaseException as error:
            prepared.span.fail(type(error).__name__)
            self._leases.drop([work for work in prepared.works if not work.on_its_way], error)
            raise
        finally:
            if prepared.span is not NOTHING:
                self._committing.submit(prepared.span.end)  # after the commits that are on their way
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
            for batch in batches(
                [len(item.tokens.ids) for item in group], self._budget.tokens, unpadded=self.engine.facts.unpadded
            ):
                yield [group[index] for index in batch]

    def _start(self, queue: str, batch: list[Item]) -> None:
        """Have the device compute a batch, and hand out the vectors of those before it, but for what the engine does ahead."""
        if batch:
            begun = time.perf_counter()
            try:
                with self._calls.watch():
                    vectors = self.engine.start([item.tokens for item in batch])
            except Exception as error:
                self._failed(queue, batch, error)
            else:
                self._started.append(Started(queue, batch, vectors, begun))
        self._finish(self.engine.facts.ahead)

    def _finish(self, most: int) -> None:
        """Hand out vectors, and commit what they make whole, until at most so many batches are under way."""
        while len(self._started) > most:
            done = self._started.popleft()
            try:
                with self._calls.watch():
                    vectors = done.vectors()
            except Exception as error:
                self._failed(done.queue, done.items, error)
                continue
            self._count(done)
            rows: dict[Work, list[int]] = {}
            for row, item in enumerate(done.items):
                rows.setdefault(item.work, []).append(row)
            for work, found in rows.items():
                work.take([done.items[row] for row in found], vectors[found])
            self._commit_whole(done.queue, rows)

    def _failed(self, queue: str, batch: list[Item], error: Exception) -> None:
        """Halve a batch that failed, until the input at fault fails alone."""
        told = of(item.work.shard for item in batch)
        if isinstance(error, DeviceLost):
            log.critical("this process ends, its shards come back with their leases: %s", error.message, extra=told)
            tracing.stop(type(error).__name__)
            os._exit(DEVICE_LOST)
        code, message, retryable = "embedding_failed", f"the model raised {type(error).__name__}", False
        if isinstance(error, OutOfMemory):
            code, message, retryable = "out_of_memory", error.message, True
            tokens = self._size(batch)
            self._out_of_memory += 1
            self._finish(0)  # what was started after it takes memory as well
            self.engine.free_memory()
            self._budget.ran_out(tokens)
            log.warning("out of memory with a batch of %d tokens; the budget is now %d", tokens, self._budget.tokens, extra=told)
        else:
            log.warning("a batch of %d inputs failed", len(batch), exc_info=error, extra=told)
        batch[0].work.span.note("batch failed", error=code, inputs=len(batch))
        if len(batch) > 1:
            half = len(batch) // 2
            self._start(queue, batch[:half])
            self._start(queue, batch[half:])
        else:
            batch[0].work.fail(batch[0].position, code, message, retryable=retryable)
            self._commit_whole(queue, [batch[0].work])

    def _size(self, batch: Sequence[Item]) -> int:
        """Tokens that the device computes for a batch, padding included."""
        counts = [len(item.tokens.ids) for item in batch]
        return sum(counts) if self.engine.facts.unpadded else max(counts) * len(counts)

    def _count(self, done: Started) -> None:
        """Note how long a batch took: from its start, or from the end of the one before, which the device did first."""
        now, tokens = time.perf_counter(), self._size(done.items)
        seconds = now - max(done.begun, self._finished)
        self._finished = now
        self._budget.succeeded(tokens, seconds)
        unpadded = sum(len(item.tokens.ids) for item in done.items)
        self._inputs += len(done.items)
        self._tokens += unpadded
        self._padded += tokens
        self._batches += 1
        self._seconds += seconds
        done.items[0].work.span.record("forward", seconds, inputs=len(done.items), tokens=unpadded, tokens_with_padding=tokens)
        self.histograms.stages["forward"].count(seconds)
        self.histograms.batch_inputs.count(len(done.items))
        self.histograms.batch_tokens.count(unpadded)
        self.histograms.batch_padding.count(1 - unpadded / tokens)
        self._last_batch = {
            "inputs": len(done.items),
            "tokens": unpadded,
            "padding_share": round(1 - unpadded / tokens, 4),
            "seconds": round(seconds, 4),
            "ended_at": time.time(),
        }

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
        facts, begun = self.engine.facts, time.perf_counter()
        try:
            stored = self.ledger.commit(
                queue,
                [work.committed() for work in works],
                device=facts.device,
                engine=facts.engine,
                dtype=facts.dtype,
                revision=facts.revision,
                parity=facts.parity,
            )
        except BaseException as error:
            works[0].span.record("commit", time.perf_counter() - begun, type(error).__name__, shards=len(works))
            works[0].span.fail(type(error).__name__)
            self._leases.drop(works, error)
            raise
        works[0].span.record("commit", time.perf_counter() - begun, shards=len(works), stored=sum(stored))
        self.histograms.stages["commit"].count(time.perf_counter() - begun)
        self._leases.drop(works)
        self.cache.keep(work for work, is_stored in zip(works, stored, strict=True) if is_stored)

    def _await_commits(self, most: int) -> None:
        """Returns when at most so many commits are on their way; raises what one of them raised, once none is any more."""
        while len(self._commits) > most:
            oldest = self._commits.pop(0)
            if oldest.exception():
                wait(self._commits)
                self._commits.clear()
            oldest.result()

    def _give_back(self, queue: str, works: Iterable[Work]) -> None:
        """Release shards that were not embedded, so that others take them at once and no attempt is counted."""
        kept = [work for work in works if not work.lost]
        try:
            if kept:
                self.ledger.release(queue, self.worker, [work.shard for work in kept])
        except BaseException as error:
            self._leases.drop(kept, error)
            raise
        self._leases.drop(works)
