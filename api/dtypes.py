"""What numbers vectors are given out in. Workers store float32; the others are made from it block by block, as they are sent.

No dtype needs a look at other vectors first, so a page, a range and the whole give the same numbers for the same input:

    float32   as stored
    float16   the nearest half; relative error at most 2**-11 for numbers from 6.1e-5, absolute at most 2**-25 below
    int8      q = round(x / scale) with scale = max|x| / 127 of the vector itself, so x = q * scale ± scale / 2
    binary    a bit for each number, set where it is positive; eight to a byte, the first one highest, the last byte filled with 0

int8 is the symmetric absolute-maximum quantisation of https://arxiv.org/abs/2208.07339 (section 2.1), with a scale for each
vector. sentence-transformers' int8 takes a minimum and a maximum of each dimension over all vectors, which nobody knows before
the last one. A scale that is the same for all, as 1/127 for unit vectors, needs none either, but leaves the number 0.05, ordinary
among 384, six steps. binary is sentence-transformers' `quantize_embeddings(…, precision="ubinary")`.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from core.blocks import ResultBlock

MOST_INT8 = 127

Array = np.ndarray[Any, np.dtype[Any]]
Vectors = np.ndarray[Any, np.dtype[np.float32]]


class Numbers(NamedTuple):
    """Vectors as they are given out. An input without a vector has a row of NaN, or of 0 where the dtype has no NaN."""

    rows: Array
    """(n, width)"""
    scales: Vectors | None = None
    """(n,), of int8 alone; NaN for an input without a vector."""


@dataclass(frozen=True)
class Dtype:
    name: str
    numpy: np.dtype[Any]
    """Of the numbers in a row, little-endian."""

    def width(self, dimensions: int) -> int:
        """Numbers in a row: of binary they are bytes."""
        return -(-dimensions // 8) if self.name == "binary" else dimensions

    @property
    def scaled(self) -> bool:
        return self.name == "int8"

    def of(self, vectors: Vectors) -> Numbers:
        """Float32 vectors, (n, dimensions), in this dtype."""
        match self.name:
            case "float16":
                with np.errstate(over="ignore"):  # beyond 65504 is infinite
                    return Numbers(vectors.astype(self.numpy))
            case "int8":
                return _in_int8(vectors)
            case "binary":
                return Numbers(np.packbits(vectors > 0, axis=1))
        return Numbers(vectors)


def _in_int8(vectors: Vectors) -> Numbers:
    scales = np.abs(vectors).max(axis=1, initial=0) / np.float32(MOST_INT8)
    divisors = np.where(scales > 0, scales, np.float32(1))
    return Numbers(np.rint(np.nan_to_num(vectors / divisors[:, None])).astype(np.int8), scales)


DTYPES = {
    dtype.name: dtype
    for dtype in (
        Dtype("float32", np.dtype("<f4")),
        Dtype("float16", np.dtype("<f2")),
        Dtype("int8", np.dtype("i1")),
        Dtype("binary", np.dtype("u1")),
    )
}
FLOAT32 = DTYPES["float32"]


def vectors_of(block: ResultBlock, dimensions: int, start: int, stop: int) -> Vectors:
    """The vectors at positions `start` to `stop` of a block, float32, (stop - start, dimensions); NaN where an input failed."""
    if block.dimensions != dimensions:  # a shard without any vector need not know the model's
        return np.full((stop - start, dimensions), np.nan, dtype="<f4")
    width = 4 * dimensions
    found = np.frombuffer(block.vectors, dtype="<f4", count=(stop - start) * dimensions, offset=start * width)
    return found.reshape(stop - start, dimensions)
