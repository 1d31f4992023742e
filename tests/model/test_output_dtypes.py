"""Vectors in smaller dtypes, beside what sentence-transformers makes of the same ones, and what a search loses by them."""

from typing import Any

import numpy as np
import pytest

from api.dtypes import DTYPES

pytestmark = pytest.mark.model


def test_binary_is_what_sentence_transformers_packs(wanted: Any) -> None:
    from sentence_transformers.util import quantize_embeddings

    packed = quantize_embeddings(wanted, precision="ubinary")
    assert DTYPES["binary"].of(wanted).rows.tobytes() == packed.tobytes()


def test_int8_and_float16_keep_each_vectors_direction(wanted: Any) -> None:
    for name, floor in (("int8", 0.9999), ("float16", 0.9999999)):
        rows = DTYPES[name].of(wanted).rows.astype(np.float64)
        cosines = (rows * wanted).sum(axis=1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(wanted, axis=1)
        assert cosines.min() > floor, name
