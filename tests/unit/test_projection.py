"""Vectors as points on a plane: the plane that a singular value decomposition finds, and never a NaN."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from api.projection import project


def vectors_of(count: int, dimensions: int, *, decay: float = 1.3, seed: int = 0) -> Any:
    """Float32 vectors whose variance shrinks from one direction to the next, as that of real ones does."""
    random = np.random.default_rng(seed)
    directions = np.linalg.qr(random.standard_normal((dimensions, dimensions))).Q
    spread = decay ** -np.arange(dimensions, dtype=np.float64)
    return (random.standard_normal((count, dimensions)) * spread @ directions + 3).astype(np.float32)


def by_svd(vectors: Any) -> tuple[Any, Any]:
    """The points and the explained shares, from numpy's own decomposition in float64."""
    centred = vectors.astype(np.float64) - vectors.astype(np.float64).mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    points = (left * values)[:, :2]
    return points / np.abs(points).max(), (values**2 / (values**2).sum())[:2]


@pytest.mark.parametrize(("count", "dimensions"), [(1000, 128), (100, 256), (5, 2), (2000, 8), (3, 128)])
def test_points_are_those_of_a_singular_value_decomposition(count: int, dimensions: int) -> None:
    vectors = vectors_of(count, dimensions)
    expected, shares = by_svd(vectors)
    found = project(vectors)
    for axis in range(2):
        sign = np.sign(found.points[:, axis] @ expected[:, axis])
        assert np.allclose(found.points[:, axis], sign * expected[:, axis], atol=1e-4)
    assert found.explained == pytest.approx(shares, abs=1e-4)
    assert np.abs(found.points).max() == 1


def test_plane_is_nearly_the_best_where_no_direction_stands_out() -> None:
    vectors = vectors_of(600, 200, decay=1.0)
    _, shares = by_svd(vectors)
    assert sum(project(vectors).explained) > 0.99 * sum(shares)


def test_same_vectors_have_the_same_points_and_more_of_them_the_same_signs() -> None:
    vectors = vectors_of(400, 64)
    first, again = project(vectors.copy()), project(vectors.copy())
    assert first.points.tobytes() == again.points.tobytes()
    fewer = project(vectors[:390].copy()).points
    assert np.allclose(fewer, first.points[:390], atol=0.1)


@pytest.mark.parametrize("rank", [1, 2])
def test_vectors_of_a_line_or_a_plane_are_shown_as_they_are(rank: int) -> None:
    random = np.random.default_rng(1)
    flat = random.standard_normal((100, rank)) * [5, 1][:rank]
    vectors = (flat @ np.linalg.qr(random.standard_normal((384, rank))).Q.T).astype(np.float32)
    found = project(vectors)
    apart = np.linalg.norm(found.points[:, None] - found.points, axis=2)
    expected = np.linalg.norm(flat[:, None] - flat, axis=2)
    assert np.allclose(apart / apart.max(), expected / expected.max(), atol=1e-4)
    assert sum(found.explained) == pytest.approx(1, abs=1e-4)
    if rank == 1:
        assert np.abs(found.points[:, 1]).max() < 1e-4


def test_two_vectors_are_the_ends_of_a_line() -> None:
    found = project(vectors_of(2, 384))
    assert sorted(found.points[:, 0].round(5)) == [-1, 1]
    assert np.allclose(found.points[:, 1], 0, atol=1e-5)
    assert found.explained == pytest.approx((1, 0), abs=1e-5)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 1000])
@pytest.mark.parametrize("number", [0.0, 0.1, 1 / 3, 3e38, 1e-45])
def test_vectors_that_are_the_same_lie_in_the_middle(count: int, number: float) -> None:
    found = project(np.full((count, 384), number, dtype=np.float32))
    assert not found.points.any()
    assert found.explained == (0.0, 0.0)


def test_one_dimension_is_a_line() -> None:
    found = project(np.array([[1], [2], [5]], dtype=np.float32))
    assert found.points[:, 1].tolist() == [0, 0, 0]
    assert np.allclose(np.diff(found.points[:, 0]), np.array([1, 3]) / (7 / 3))


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 12), st.integers(1, 12)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
)
def test_whatever_the_numbers_no_point_is_off_the_map(vectors: Any) -> None:
    found = project(vectors)
    assert np.isfinite(found.points).all()
    assert np.abs(found.points).max() in (0, 1)
    assert all(0 <= share <= 1 for share in found.explained)
