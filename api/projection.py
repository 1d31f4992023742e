"""Draw vectors on a plane: their two principal components, by numpy alone.

Not by the eigenvectors of their covariance, whose time grows with the third power of the dimensions, and of which two are wanted.
A block Krylov space holds the first few well enough for the eye, after a fixed number of products with the vectors (Musco and
Musco, https://arxiv.org/abs/1504.05477, algorithm 2).
"""

from typing import Any, NamedTuple

import numpy as np

from api.dtypes import Vectors

BLOCK = 8
STEPS = 12
"""The space has `BLOCK * (STEPS + 1)` directions; vectors of no more dimensions have theirs exactly."""

Points = np.ndarray[Any, np.dtype[np.float64]]


class Projection(NamedTuple):
    points: Points
    """(n, 2), the largest absolute coordinate being 1; all 0 where the vectors are the same."""
    explained: tuple[float, float]
    """The share of the vectors' variance that each coordinate has."""


def project(vectors: Vectors) -> Projection:
    """The vectors on the plane of their two principal components. The same vectors have the same points, signs included.

    Args:
        vectors: float32, (n, dimensions), finite; they are overwritten, so that no second copy is held.
    """
    points = np.zeros((len(vectors), 2))
    if vectors.size:
        _centre(vectors)
    variance = float(np.vdot(vectors, vectors))
    if not variance:
        return Projection(points, (0.0, 0.0))
    components = _components(vectors)
    points[:, : components.shape[1]] = vectors @ components
    first, second = np.square(points).sum(axis=0) / variance
    return Projection(points / np.abs(points).max(), (min(1.0, float(first)), min(1.0, float(second))))


def _centre(vectors: Vectors) -> None:
    """Make the mean 0 and the largest number 1, so that no square of a float32 is infinite or lost.

    The first vector is taken off before the mean: that of equal numbers may be another one by a rounding, which would then be
    drawn as if it were a difference.
    """
    _scale(vectors)
    vectors -= vectors[0].copy()
    vectors -= vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    _scale(vectors)


def _scale(vectors: Vectors) -> None:
    if largest := max(vectors.max(), -vectors.min()):
        vectors /= largest


def _components(vectors: Vectors) -> Vectors:
    """The first two principal components, (dimensions, 2), or the only one of one dimension."""
    block = np.random.default_rng(0).standard_normal((vectors.shape[1], BLOCK), dtype=np.float32)
    blocks = [block]
    for _ in range(STEPS):
        block = np.linalg.qr(vectors.T @ (vectors @ block)).Q
        blocks.append(block)
    basis = np.linalg.qr(np.hstack(blocks)).Q
    inner = (vectors @ basis).astype(np.float64)
    components = basis @ np.linalg.eigh(inner.T @ inner).eigenvectors[:, :-3:-1].astype(np.float32)
    largest = np.abs(components).argmax(axis=0)
    signed: Vectors = components * np.sign(np.take_along_axis(components, largest[None], axis=0))
    return signed
