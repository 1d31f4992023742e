"""Real vectors in smaller dtypes, beside what sentence-transformers makes of the same ones."""

from typing import Any

import numpy as np
import pytest

from api.dtypes import DTYPES

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def vectors(reference: Any, texts: list[str]) -> Any:
    """float32, (24, 384)."""
    return reference.encode(texts[1:25])


def test_binary_is_what_sentence_transformers_packs(vectors: Any) -> None:
    from sentence_transformers.util import quantize_embeddings

    packed = quantize_embeddings(vectors, precision="ubinary")
    assert DTYPES["binary"].of(vectors).rows.tobytes() == packed.tobytes()


def test_int8_and_float16_keep_each_vectors_direction(vectors: Any) -> None:
    for name, floor in (("int8", 0.9999), ("float16", 0.9999999)):
        rows = DTYPES[name].of(vectors).rows.astype(np.float64)
        cosines = (rows * vectors).sum(axis=1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(vectors, axis=1)
        assert cosines.min() > floor, name
