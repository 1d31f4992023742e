"""A page as an array for `numpy.load`. A head and rows of the same size: every byte's place is known before any shard is read."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Self

import numpy as np

from api.dtypes import Dtype, vectors_of
from api.results import Page, Part, dimensions_of
from core.errors import InvalidRequest


@dataclass(frozen=True)
class NpyFile:
    """The array (count, width), C order, with a row for each input of the page."""

    page: Page
    dtype: Dtype
    dimensions: int
    head: bytes
    row_bytes: int

    @classmethod
    def of(cls, page: Page, dtype: Dtype) -> Self:
        """The file of a page.

        Raises:
            JobNotReady: no shard is finished, so nobody knows the dimensions yet.
            InvalidRequest: none will be, or the scales of int8 would be lost that the job's vectors need.
        """
        if dtype.scaled and not page.job.options.normalize:
            raise InvalidRequest(
                "dtype int8 has a scale for each vector, which npy has no place for, and the job's vectors are not of length 1; "
                "take format arrow, parquet, ndjson or json, or dtype float16",
                param="dtype",
            )
        dimensions = dimensions_of(page.job)
        head, width = io.BytesIO(), dtype.width(dimensions)
        descr = np.lib.format.dtype_to_descr(dtype.numpy)
        np.lib.format.write_array_header_1_0(head, {"descr": descr, "fortran_order": False, "shape": (page.count, width)})
        return cls(page, dtype, dimensions, head.getvalue(), dtype.numpy.itemsize * width)

    @property
    def size_bytes(self) -> int:
        return len(self.head) + self.row_bytes * self.page.count

    def read(self, read_parts: Callable[[int, int], Iterator[Part]], start: int, stop: int) -> Iterator[bytes]:
        """Bytes `start` to `stop` of the file; only the shards they lie in are read.

        Args:
            read_parts: the parts of the inputs from one index in the job to another.
        """
        first, last = max(0, start - len(self.head)), max(0, stop - len(self.head))  # among the rows' bytes
        head = self.head[start:stop]
        if first >= last:
            return iter([head])
        row = first // self.row_bytes
        parts = read_parts(self.page.offset + row, self.page.offset - (-last // self.row_bytes))
        return chain([head] if head else [], self._slices(parts, row * self.row_bytes, first, last))

    def _slices(self, parts: Iterator[Part], position: int, first: int, last: int) -> Iterator[bytes]:
        for part in parts:
            rows = self.rows(part)
            yield rows[max(0, first - position) : last - position]
            position += len(rows)

    def rows(self, part: Part) -> bytes:
        return self.dtype.of(vectors_of(part.block, self.dimensions, part.start, part.stop)).rows.tobytes()
