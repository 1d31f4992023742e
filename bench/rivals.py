"""What our service is compared with, each in a process of its own, so that its memory is its own as well."""

import functools
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import psutil

from bench.operations import Shape, matrix_rate
from core.batching import batches
from core.config import Settings

T = TypeVar("T")


class Rival:
    """A fresh Python process that keeps a model between calls; use it in a `with` block."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self.process = psutil.Process(self.call(os.getpid))

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """What the function gives there; its name and its arguments go through a pipe."""
        return self._pool.submit(function, *arguments).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown()


# In the process of `encode` ----------------------------------------------------------------------------------------------


@functools.cache
def _model() -> Any:
    import torch

    from worker.engines.model import Model

    return Model.load(Settings.from_env(dict(os.environ) | {"DEVICE": "cpu"}), "cpu", torch.float32).module


def model_shape() -> Shape | None:
    return Shape.of(_model())


def encode(texts: Sequence[str], batch_size: int) -> tuple[float, np.ndarray]:
    """Seconds of sentence-transformers' `encode`, and the vectors."""
    model = _model()
    started = time.perf_counter()
    vectors = model.encode(list(texts), batch_size=batch_size, normalize_embeddings=True)
    return time.perf_counter() - started, vectors


def machine_rate(seconds: float) -> float:
    """GFLOP/s of a matrix product, with as many threads as `encode` has."""
    _model()
    return matrix_rate(seconds)


# In the process of the engine --------------------------------------------------------------------------------------------


@functools.cache
def _engine() -> Any:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in a worker; read when torch is imported
    from worker.engines.loading import load_engine

    return load_engine(Settings.from_env(dict(os.environ) | {"DEVICE": "cpu"}))


def engine_facts() -> tuple[str, str]:
    """Its name, and the dtype in which it computes."""
    facts = _engine().facts
    return facts.engine, facts.dtype


def token_counts(texts: Sequence[str]) -> list[int]:
    """Tokens of each text, as the model takes it."""
    return [len(item.ids) for item in _engine().tokenize(list(texts), None)]


def embed(texts: Sequence[str], budget_tokens: int) -> float:
    """Seconds of our engine, tokenising included."""
    engine = _engine()
    started = time.perf_counter()
    tokens = engine.tokenize(list(texts), None)
    for batch in batches([len(item.ids) for item in tokens], budget_tokens):
        engine.embed([tokens[index] for index in batch])
    return time.perf_counter() - started
