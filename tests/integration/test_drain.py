"""A drain on a real ledger, in this process, with engines whose every step is seen: what runs ahead, what runs out of memory."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from core.budget import GROW_AFTER
from core.config import Settings
from core.errors import DeviceLost, LedgerUnavailable, OutOfMemory
from core.jobs import JobStatus, Lane
from core.ledger import Ledger
from tests.fakes import DIMENSIONS, MAX_TOKENS, SPECIAL_TOKENS, FakeEngine, vector_of
from tests.integration.test_worker import assert_every_vector, submit
from tests.processes import wait_for
from worker.drain import Drain
from worker.engines import Tokens

pytestmark = pytest.mark.integration

TEXTS = [f"text number {n} " + "word " * (n % 40) for n in range(120)]


class Device(FakeEngine):
    """Computes when the vectors are read, and has memory for so many tokens in a batch, padding included."""

    def __init__(self, *, ahead: int = 1, memory_tokens: int = 10**9, full_at: str = "start", batch_size: int = 1) -> None:
        super().__init__(Settings.from_env({"BATCH_SIZE": str(batch_size)}), ahead=ahead)
        self.memory_tokens = memory_tokens
        self.full_at = full_at
        self.steps: list[tuple[str, int]] = []
        self.started: list[Sequence[Tokens]] = []
        self.freed = 0

    def start(self, batch: Sequence[Tokens]) -> Callable[[], np.ndarray]:
        number = len(self.started)
        self.started.append(batch)
        self._take("start", number, batch)

        def vectors() -> np.ndarray:
            self._take("read", number, batch)
            return self.embed(batch)

        return vectors

    def _take(self, step: str, number: int, batch: Sequence[Tokens]) -> None:
        self.steps.append((step, number))
        if step == self.full_at and max(len(item.ids) for item in batch) * len(batch) > self.memory_tokens:
            raise OutOfMemory("the device is full")

    def free_memory(self) -> None:
        self.freed += 1


def drain(engine: FakeEngine, ledger: Ledger, *, stopping: Callable[[], bool] = lambda: False, **environ: str) -> Drain:
    """Work until nothing is left."""
    settings = Settings.from_env({"BATCH_SECONDS": "1000", "DRAIN_SECONDS": "100"} | environ)
    found = Drain(engine, ledger, settings, "one@test", wake=lambda queue: None, stopping=stopping, linger_seconds=0)
    found.run("cpu")
    return found


def test_next_batch_is_started_before_the_vectors_of_the_last_are_read(ledger: Ledger) -> None:
    submit(ledger, TEXTS)
    engine = Device()
    drain(engine, ledger)
    steps = engine.steps
    assert len(engine.started) > 5
    for number in range(1, len(engine.started) - 1):
        assert steps.index(("start", number)) < steps.index(("read", number - 1)) < steps.index(("start", number + 1))
    assert_every_vector(ledger, "job", TEXTS)


def test_engine_that_runs_nothing_ahead_hands_out_each_batch_at_once(ledger: Ledger) -> None:
    submit(ledger, TEXTS)
    engine = Device(ahead=0)
    drain(engine, ledger)
    assert engine.steps == [(step, number) for number in range(len(engine.started)) for step in ("start", "read")]
    assert_every_vector(ledger, "job", TEXTS)


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("full_at", ["start", "read"])
def test_full_device_halves_the_budget_and_fails_nothing(ledger: Ledger, full_at: str, ahead: int) -> None:
    submit(ledger, TEXTS)
    engine = Device(ahead=ahead, memory_tokens=300, full_at=full_at, batch_size=8)
    figures = drain(engine, ledger).figures()
    job = ledger.get("job", "default")
    assert (job.status, job.counts.done, job.counts.failed) == (JobStatus.SUCCEEDED, len(TEXTS), 0)
    assert_every_vector(ledger, "job", TEXTS)
    assert figures["out_of_memory"] == engine.freed > 0
    assert figures["budget_tokens"] == MAX_TOKENS  # no less than one text of full length


def test_budget_that_was_halved_is_remembered_and_grows_back(ledger: Ledger) -> None:
    engine = Device(batch_size=4)
    found = drain(engine, ledger)

    def figures_after(texts: int) -> tuple[int, int]:
        submit(ledger, ["word " * 200] * texts, f"job{len(engine.started)}")
        found.run("cpu")
        return found.figures()["out_of_memory"], found.figures()["budget_tokens"]

    assert figures_after(8) == (0, 1024)
    engine.memory_tokens = 700
    assert figures_after(8) == (1, 505)  # half of five texts of 202 tokens
    assert figures_after(8) == (1, 505)
    engine.memory_tokens = 10**9
    before = len(engine.started)
    assert figures_after(2 * GROW_AFTER) == (1, 1010)
    assert {len(batch) for batch in engine.started[before:]} == {2}


@pytest.mark.parametrize("ahead", [0, 1])
def test_text_whose_vectors_cannot_be_read_fails_alone(ledger: Ledger, ahead: int) -> None:
    texts = [*TEXTS[:30], "RAISE an error", *TEXTS[30:60]]
    submit(ledger, texts)
    drain(Device(ahead=ahead), ledger)
    job = ledger.get("job", "default")
    assert (job.counts.done, job.counts.failed, job.errors[0].index, job.errors[0].code) == (60, 1, 30, "embedding_failed")
    assert_every_vector(ledger, "job", texts, but=frozenset({30}))


def test_job_that_asks_for_another_model_fails_and_says_which(ledger: Ledger) -> None:
    submit(ledger, TEXTS, "before", model="org/before")
    submit(ledger, TEXTS, "now", model="org/now")
    engine = Device()
    drain(engine, ledger, MODEL_NAME="org/now")
    before = ledger.get("before", "default")
    assert (before.status, before.counts.failed) == (JobStatus.FAILED, len(TEXTS))
    assert {(error.code, error.retryable) for error in before.errors} == {("model_changed", False)}
    assert "org/before" in before.errors[0].message
    assert "org/now" in before.errors[0].message
    assert sum(map(len, engine.started)) == len(TEXTS)
    assert_every_vector(ledger, "now", TEXTS)


def test_text_that_cannot_be_tokenised_fails_alone(ledger: Ledger) -> None:
    class Picky(Device):
        def tokenize(self, texts: Sequence[str], prompt_name: str | None) -> list[Tokens]:
            if any(text.startswith("RAISE") for text in texts):
                raise ValueError("the tokenizer was asked to raise")
            return super().tokenize(texts, prompt_name)

    texts = [*TEXTS[:30], "RAISE an error", *TEXTS[30:60]]
    submit(ledger, texts)
    drain(Picky(), ledger)
    job = ledger.get("job", "default")
    assert (job.counts.done, [(error.index, error.code) for error in job.errors]) == (60, [(30, "embedding_failed")])
    assert ledger.queue_states(["cpu"])[0].suspects == 0
    assert_every_vector(ledger, "job", texts, but=frozenset({30}))


@pytest.mark.parametrize("ahead", [0, 1])
def test_interactive_text_waits_for_the_batches_under_way_only(
    ledger: Ledger, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.leases.LOOK_SECONDS", 0)  # these batches take no time

    class Asked(Device):
        """Asked for an interactive text while it computes its fourth batch."""

        def _take(self, step: str, number: int, batch: Sequence[Tokens]) -> None:
            super()._take(step, number, batch)
            if (step, number) == ("read", 3):
                submit(ledger, ["at once"], "interactive", lane=Lane.INTERACTIVE)

    submit(ledger, TEXTS, "bulk")
    engine = Asked(ahead=ahead)
    drain(engine, ledger)
    texts = [[item.text for item in batch] for batch in engine.started]  # type: ignore[attr-defined]
    assert texts.index(["at once"]) == 4 + ahead
    assert_every_vector(ledger, "bulk", TEXTS)
    assert_every_vector(ledger, "interactive", ["at once"])


@pytest.mark.parametrize("ahead", [0, 1])
def test_worker_told_to_stop_finishes_what_it_started_and_gives_the_rest_back(ledger: Ledger, ahead: int) -> None:
    submit(ledger, TEXTS)
    engine = Device(ahead=ahead)
    drain(engine, ledger, stopping=lambda: len(engine.started) >= 6)
    assert len(engine.started) == 6
    assert engine.steps[-1] == ("read", 5)
    state = ledger.queue_states(["cpu"])[0]
    done = ledger.get("job", "default").counts.done
    assert (state.running, state.suspects, state.waiting["bulk"]) == (0, 0, len(TEXTS) - done)
    drain(Device(ahead=ahead), ledger)
    assert_every_vector(ledger, "job", TEXTS)


def leases_run_out(ledger: Ledger) -> None:
    client, leases = ledger._redis, ledger._key("leases", "cpu")
    client.zadd(leases, dict.fromkeys(client.zrange(leases, 0, -1), 1))


def test_shards_are_given_back_when_redis_can_be_reached_again(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **facts: object) -> list[bool]:
        raise LedgerUnavailable("Redis is away")

    submit(ledger, TEXTS)
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "commit", refuse)
        with pytest.raises(LedgerUnavailable):
            drain(Device(), ledger, LEASE_SECONDS="0.5")
    waiting = {"interactive": 0, "bulk": len(TEXTS)}
    wait_for(lambda: ledger.queue_states(["cpu"])[0].waiting == waiting, seconds=10, what="the shards' return")
    assert ledger.queue_states(["cpu"])[0].suspects == 0
    drain(Device(), ledger)
    assert_every_vector(ledger, "job", TEXTS)


@pytest.mark.parametrize("batches", [1, 2], ids=["told by the commit", "told between batches"])
def test_worker_that_lost_a_suspect_but_lives_takes_the_death_back(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    monkeypatch.setattr("worker.leases.LOOK_SECONDS", 0)

    class Stopped(Device):
        """Stands still in its first batch, for longer than its lease."""

        def _take(self, step: str, number: int, batch: Sequence[Tokens]) -> None:
            super()._take(step, number, batch)
            if (step, number) == ("start", 0):
                leases_run_out(ledger)
                ledger.claim("cpu", "other@test", lease_seconds=60, max_bytes=1)

    submit(ledger, ["word " * 200] * batches)
    ledger.claim("cpu", "dead@test", lease_seconds=60, max_bytes=1)
    leases_run_out(ledger)
    drain(Stopped(ahead=0), ledger)
    leases_run_out(ledger)
    (shard,) = ledger.claim("cpu", "next@test", lease_seconds=60, max_bytes=1).shards
    assert (shard.attempt, shard.deaths) == (4, 1), "the death of other@test alone"


def test_process_ends_with_its_device_and_blames_no_text(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost(Device):
        def _take(self, step: str, number: int, batch: Sequence[Tokens]) -> None:
            super()._take(step, number, batch)
            if (step, number) == ("read", 2):
                raise DeviceLost("cuda:0 failed: device-side assert triggered")

    def end(code: int) -> Any:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", end)
    submit(ledger, TEXTS)
    with pytest.raises(SystemExit, match="4"):
        drain(Lost(), ledger)
    job = ledger.get("job", "default")
    assert (job.status, job.counts.failed) == (JobStatus.RUNNING, 0)


def test_figures_tell_of_the_last_batch(ledger: Ledger) -> None:
    submit(ledger, ["one two", "one two three four"])
    figures = drain(Device(batch_size=8), ledger).figures()
    assert (figures["batches"], figures["inputs"], figures["tokens"], figures["padding_share"]) == (1, 2, 10, 0.1667)
    last = figures["last_batch"]
    assert (last["inputs"], last["tokens"], last["padding_share"]) == (2, 10, 0.1667)
    assert last["seconds"] >= 0


def chunked_vector(text: str, overlap: int = 0) -> np.ndarray:
    """What a chunked text's vector is to be, from its words by hand: float32, (DIMENSIONS,)."""
    words, room = text.split(), MAX_TOKENS - SPECIAL_TOKENS
    if len(words) <= room:
        return vector_of(text)
    starts = [first for first in range(0, len(words), room - overlap) if first == 0 or first + overlap < len(words)]
    chunks = [words[first : first + room] for first in starts]
    mean = sum(len(chunk) * vector_of(" ".join(chunk)).astype(np.float64) for chunk in chunks)
    return mean / np.linalg.norm(mean)


def long_text(name: str, words: int) -> str:
    return " ".join([name, *(f"w{n}" for n in range(words - 1))])


@pytest.mark.parametrize("overlap", [0, 20])
@pytest.mark.parametrize("memory_tokens", [10**9, 300], ids=["enough memory", "little memory"])
def test_chunks_of_long_texts_become_one_vector_each(ledger: Ledger, overlap: int, memory_tokens: int) -> None:
    texts = ["short", long_text("long", 255), long_text("longer", 508), long_text("longest", 1000), *TEXTS[:20]]
    submit(ledger, texts, truncate="chunk", chunk_overlap=overlap)
    engine = Device(batch_size=4, memory_tokens=memory_tokens)
    drained = drain(engine, ledger)
    assert (drained.figures()["out_of_memory"] > 0) == (memory_tokens == 300)
    blocks = [ledger.result("job", span) for span in ledger.finished("job")]
    vectors = np.concatenate([np.frombuffer(block.vectors, dtype="<f4").reshape(-1, DIMENSIONS) for block in blocks])
    for text, vector in zip(texts, vectors, strict=True):
        np.testing.assert_allclose(vector, chunked_vector(text, overlap), atol=1e-6)
    assert blocks[0].chunks == ({1: 2, 2: 2, 3: 4} if overlap == 0 else {1: 2, 2: 3, 3: 5})
    assert (blocks[0].tokens[1], ledger.get("job", "default").truncated) == (255 + overlap + 2 * SPECIAL_TOKENS, 0)


def test_text_fails_as_a_whole_and_alone_when_a_chunk_fails(ledger: Ledger) -> None:
    bad = long_text("good", MAX_TOKENS - SPECIAL_TOKENS) + " RAISE " + long_text("good", 600)
    texts = [*TEXTS[:10], bad, *TEXTS[10:20]]
    submit(ledger, texts, truncate="chunk")
    drain(Device(batch_size=4), ledger)
    job = ledger.get("job", "default")
    assert [(error.index, error.code) for error in job.errors] == [(10, "embedding_failed")]
    assert (job.counts.done, job.counts.failed) == (20, 1)
    assert_every_vector(ledger, "job", texts, but=frozenset({10}))


def test_start_keeps_the_end_of_a_text(ledger: Ledger) -> None:
    text = long_text("long", 400)
    submit(ledger, [text, "short"], truncate="start", prompt_name="query")
    drain(Device(), ledger)
    kept = " ".join(text.split()[-(MAX_TOKENS - SPECIAL_TOKENS - 1) :])
    assert_every_vector(ledger, "job", [f"query: {kept}", "query: short"])
    block = ledger.result("job", ledger.finished("job")[0])
    assert (block.truncated, block.chunks, block.tokens) == ({0}, {}, (MAX_TOKENS, 4))


def test_overlap_that_leaves_too_little_room_fails_the_long_text_alone(ledger: Ledger) -> None:
    submit(ledger, ["short", long_text("long", 400)], truncate="chunk", chunk_overlap=128)
    drain(Device(), ledger)
    job = ledger.get("job", "default")
    assert (job.counts.done, job.errors[0].index, job.errors[0].code) == (1, 1, "no_room_for_text")


def test_worker_that_stops_between_chunks_gives_the_text_back(ledger: Ledger) -> None:
    text = long_text("long", 2000)
    submit(ledger, [text], truncate="chunk")
    engine = Device(ahead=0)
    drain(engine, ledger, stopping=lambda: len(engine.started) >= 3)
    assert (len(engine.started), ledger.finished("job")) == (3, [])
    drain(Device(), ledger)
    block = ledger.result("job", ledger.finished("job")[0])
    np.testing.assert_allclose(np.frombuffer(block.vectors, dtype="<f4"), chunked_vector(text), atol=1e-6)
    assert ledger.get("job", "default").counts.done == 1
