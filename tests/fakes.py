"""A worker whose engine derives each vector from its text, for tests that ask what happens to work, not what it means.

    celery -A tests.fakes worker -Q cpu

is a real worker in every other respect. Texts may ask for trouble: a text that starts with `KILL` kills its process,
`RAISE` raises, `HANG` never returns, `FREEZE` neither and lets no other thread run, `OOM:n` is out of memory in a batch of more
than n texts, `BREAK` has the tokenizer raise an error that quotes it. `FAKE_BATCH_SECONDS` is how long a batch takes,
`FAKE_TOKEN_SECONDS` how long each of its tokens takes beside that (`FAKE_TOKEN_WORK=cpu`: of a CPU's time instead of the
clock's), `FAKE_DEVICE` the device the engine claims to have. With
`FAKE_KILL_AFTER_STORE=file` the process that first writes to the result store dies before it can commit; it leaves that file.
`FAKE_SEEN=file` has each text that is embedded added to a file, a line each.
"""

import ctypes
import hashlib
import os
import re
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import worker.lifecycle
from core.config import Settings
from core.errors import OutOfMemory
from core.result_store import ResultStore
from worker import app
from worker.engines import Engine, EngineFacts, Tokens
from worker.engines.chunks import windows

__all__ = ["DIMENSIONS", "FakeEngine", "app", "vector_of"]

DIMENSIONS = 8
MAX_TOKENS = 256
SPECIAL_TOKENS = 2


def vector_of(text: str) -> np.ndarray:
    """The vector every fake engine gives for a text: float32, (DIMENSIONS,), of unit length."""
    digest = hashlib.blake2b(text.encode(), digest_size=2 * DIMENSIONS).digest()
    vector = np.frombuffer(digest, dtype=np.uint16).astype(np.float32) + 1
    return vector / np.linalg.norm(vector)


def burn(seconds: float) -> None:
    """Compute until this thread has had so much time of a CPU."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        hashlib.blake2b(bytes(65_536)).digest()


def die_after_store(marker: Path) -> None:
    """Have the first process that writes results die between the write and the commit."""
    put_all = ResultStore.put_all

    def put_all_and_die(store: ResultStore, blocks: Mapping[str, bytes]) -> None:
        put_all(store, blocks)
        if blocks and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    ResultStore.put_all = put_all_and_die  # type: ignore[method-assign]


class FakeTokens(Tokens):
    """Tokens that remember their text: one token a word."""

    def __init__(self, text: str, **of_chunk: Any) -> None:
        words = len(text.split()) + SPECIAL_TOKENS
        super().__init__(**({"ids": range(min(words, MAX_TOKENS)), "truncated": words > MAX_TOKENS} | of_chunk))
        object.__setattr__(self, "text", text)


class FakeEngine(Engine):
    def __init__(self, settings: Settings, *, ahead: int = 0) -> None:
        self.batch_seconds = float(os.environ.get("FAKE_BATCH_SECONDS", "0"))
        self.token_seconds = float(os.environ.get("FAKE_TOKEN_SECONDS", "0"))
        self.seen = os.environ.get("FAKE_SEEN")
        self.work = burn if os.environ.get("FAKE_TOKEN_WORK") == "cpu" else time.sleep
        self.facts = EngineFacts(
            engine="fake",
            model=settings.model_name,
            revision="fake",
            device=os.environ.get("FAKE_DEVICE", "cpu"),
            dtype="float32",
            dimensions=DIMENSIONS,
            max_tokens=MAX_TOKENS,
            prompts={"query": "query: "},
            budget_tokens=(settings.batch_size or 8) * MAX_TOKENS,
            parity=0.99995,
            ahead=ahead,
        )

    def tokenize(self, texts: Sequence[str], prompt_name: str | None) -> list[Tokens]:
        assert texts, "real tokenizers take no empty list"
        if broken := [text for text in texts if text.startswith("BREAK")]:
            raise ValueError(f"the fake tokenizer cannot take {broken[0]!r}")
        return [FakeTokens(f"{prompt_name}: {text}" if prompt_name else text) for text in texts]

    def chunks(
        self, texts: Sequence[str], prompt_name: str | None, *, overlap: int = 0, only_last: bool = False
    ) -> list[list[Tokens]]:
        prompt = f"{prompt_name}: " if prompt_name else ""
        room = MAX_TOKENS - SPECIAL_TOKENS - len(prompt.split())
        found: list[list[Tokens]] = []
        for text in texts:
            words = list(re.finditer(r"\S+", text))
            if only_last:
                found.append([FakeTokens(prompt + text[words[-room].start() :], truncated=True)])
                continue
            spans = [
                (end - first, (words[first].start(), words[end - 1].end())) for first, end in windows(len(words), room, overlap)
            ]
            found.append([FakeTokens(prompt + text[slice(*span)], weight=weight, span=span) for weight, span in spans])
        return found

    def embed(self, batch: Sequence[Tokens]) -> np.ndarray:
        texts = [item.text for item in batch]  # type: ignore[attr-defined]
        if self.seen:
            with open(self.seen, "a") as file:
                file.write("".join(f"{text}\n" for text in texts))
        time.sleep(self.batch_seconds)
        self.work(self.token_seconds * sum(len(item.ids) for item in batch))
        for text in texts:
            if text.startswith("KILL"):
                os.kill(os.getpid(), signal.SIGKILL)
            if text.startswith("RAISE"):
                raise RuntimeError("the fake engine was asked to raise")
            if text.startswith("HANG"):
                time.sleep(3600)
            if text.startswith("FREEZE"):
                ctypes.PyDLL(None).sleep(3600)  # unlike CDLL this keeps the interpreter's lock
            if text.startswith("OOM:") and len(texts) > int(text.split()[0].removeprefix("OOM:")):
                raise OutOfMemory("the fake device is full")
        return np.stack([vector_of(text) for text in texts])

    def free_memory(self) -> None:
        pass

    def memory(self) -> dict[str, int]:
        return {}


worker.lifecycle.load_engine = FakeEngine
if marker := os.environ.get("FAKE_KILL_AFTER_STORE"):
    die_after_store(Path(marker))
