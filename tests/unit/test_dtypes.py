"""What becomes of float32 in each of the other dtypes, and how far off it is at most."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from api.dtypes import DTYPES, FLOAT32, vectors_of
from core.blocks import ResultBlock

FLOAT16, INT8, BINARY = DTYPES["float16"], DTYPES["int8"], DTYPES["binary"]
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=20)
VECTORS = hnp.arrays(np.float32, SHAPES, elements=st.floats(-60_000, 60_000, width=32))


@given(VECTORS)
def test_float32_is_what_was_stored(vectors: Any) -> None:
    assert FLOAT32.of(vectors).rows.tobytes() == vectors.tobytes()


@given(VECTORS)
def test_float16_is_within_its_bound(vectors: Any) -> None:
    rows = FLOAT16.of(vectors).rows
    assert rows.dtype == np.dtype("<f2")
    error = np.abs(rows.astype(np.float64) - vectors)
    assert (error <= np.maximum(np.abs(vectors.astype(np.float64)) * 2.0**-11, 2.0**-25)).all()


def test_float16_of_a_number_beyond_its_range_is_infinite() -> None:
    assert FLOAT16.of(np.array([[70_000.0, -70_000.0]], dtype="<f4")).rows.tolist() == [[np.inf, -np.inf]]


@given(VECTORS)
def test_int8_is_within_half_a_step_of_each_vectors_own_scale(vectors: Any) -> None:
    rows, scales = INT8.of(vectors)
    assert rows.dtype == np.int8
    assert scales is not None
    assert scales.dtype == np.float32
    exact = vectors.astype(np.float64)
    largest = np.abs(exact).max(axis=1)
    assert scales == pytest.approx(largest / 127, rel=1e-6, abs=1e-44)
    assert np.abs(rows.astype(int)).max(initial=0) <= 127
    restored = rows.astype(np.float64) * scales[:, None].astype(np.float64)
    assert (np.abs(restored - exact) <= (largest / 254 * (1 + 1e-5) + 1e-40)[:, None]).all()


def test_int8_keeps_the_direction_of_unit_vectors() -> None:
    """Also without the scale: a row divided by its length is the vector again."""
    vectors = np.random.default_rng(1).standard_normal((500, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = INT8.of(vectors).rows.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = (rows * vectors).sum(axis=1)
    bounds = np.abs(vectors).max(axis=1) * np.sqrt(384) / 254  # of the sine of the angle between the two
    assert (cosines >= np.sqrt(1 - bounds**2) - 1e-6).all()
    assert cosines.min() > 0.9999


def test_binary_is_a_bit_for_each_positive_number() -> None:
    vectors = np.array([[0.1, -0.1, 0.0, 2.0, -0.0, 1e-40, -3.0, 4.0, 5.0], [-1.0] * 9], dtype="<f4")
    rows, scales = BINARY.of(vectors)
    assert scales is None
    assert rows.tolist() == [[0b10010101, 0b10000000], [0, 0]]
    assert (BINARY.width(9), BINARY.width(8), INT8.width(9)) == (2, 1, 9)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
def test_input_without_a_vector_is_a_row_of_nan_or_of_zeros(dtype: Any) -> None:
    vectors = np.array([[1.0, 2.0], [np.nan, np.nan]], dtype="<f4")
    rows, scales = dtype.of(vectors)
    wanted = np.nan if dtype.numpy.kind == "f" else 0
    assert np.array_equal(rows[1], np.full(dtype.width(2), wanted, dtype=dtype.numpy), equal_nan=wanted != 0)
    assert scales is None or np.isnan(scales[1])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
def test_vector_alone_has_the_numbers_it_has_among_others(dtype: Any) -> None:
    vectors = np.random.default_rng(2).standard_normal((40, 24)).astype(np.float32)
    together = dtype.of(vectors)
    for n in range(40):
        alone = dtype.of(vectors[n : n + 1])
        assert alone.rows[0].tobytes() == together.rows[n].tobytes()
        assert together.scales is None or alone.scales[0] == together.scales[n]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
def test_no_vectors_are_no_rows(dtype: Any) -> None:
    assert dtype.of(np.empty((0, 12), dtype="<f4")).rows.shape == (0, dtype.width(12))


def test_block_without_any_vector_is_rows_of_nan() -> None:
    block = ResultBlock(dimensions=0, vectors=b"", tokens=(0, 0, 0))
    found = vectors_of(block, 4, 1, 3)
    assert found.shape == (2, 4)
    assert np.isnan(found).all()
