"""The npy file: what numpy reads, and any range of its bytes."""

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import results
from api.dtypes import DTYPES, FLOAT32, Dtype
from api.npy import NpyFile
from api.results import Page, Part
from core.blocks import ResultBlock
from core.errors import InvalidRequest, JobNotReady
from core.jobs import JobOptions
from core.sharding import Span
from tests.unit.test_results import ALL, DIMENSIONS, FAILED, RUNNING, FinishedShards, job_of, vector


def reader(shards: FinishedShards, page: Page) -> Callable[[int, int], Iterator[Part]]:
    return lambda offset, end: results.started(results.read_parts(shards, "j", page.spans, offset, end))


def content(shards: FinishedShards, page: Page, dtype: Dtype = FLOAT32) -> bytes:
    file = NpyFile.of(page, dtype)
    found = b"".join(file.read(reader(shards, page), 0, file.size_bytes))
    assert len(found) == file.size_bytes
    return found


def load(raw: bytes) -> Any:
    return np.load(io.BytesIO(raw), allow_pickle=False)


@pytest.mark.parametrize(("offset", "limit"), [(0, None), (0, 1), (2, 3), (4, 1), (7, None)])
def test_array_has_a_row_for_each_input(offset: int, limit: int | None) -> None:
    shards = FinishedShards(job_of(7), ALL, FAILED)
    page = shards.page(offset, limit)
    array = load(content(shards, page))
    assert (array.shape, array.dtype) == ((page.count, DIMENSIONS), np.dtype("<f4"))
    for index, row in enumerate(array, start=offset):
        assert np.isnan(row).all() if index in FAILED else row.tolist() == vector(index)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
def test_array_is_a_plain_matrix_of_its_dtype(dtype: Dtype) -> None:
    shards = FinishedShards(job_of(7), ALL)
    array = load(content(shards, shards.page(), dtype))
    assert array.dtype == dtype.numpy
    assert array.flags.c_contiguous
    assert np.array_equal(array, dtype.of(np.array([vector(n) for n in range(7)], dtype="<f4")).rows)


@given(st.data(), st.sampled_from(list(DTYPES.values())))
def test_every_range_is_that_part_of_the_whole(data: st.DataObject, dtype: Dtype) -> None:
    shards = FinishedShards(job_of(7), ALL, FAILED)
    page = shards.page(data.draw(st.integers(0, 7)), data.draw(st.none() | st.integers(1, 7)))
    whole = content(shards, page, dtype)
    start = data.draw(st.integers(0, len(whole) - 1))
    stop = data.draw(st.integers(start + 1, len(whole)))
    found = b"".join(NpyFile.of(page, dtype).read(reader(shards, page), start, stop))
    assert found == whole[start:stop]


def test_range_reads_only_the_shards_it_lies_in() -> None:
    shards = FinishedShards(job_of(7), ALL)
    page = shards.page()
    file = NpyFile.of(page, FLOAT32)
    rows = file.row_bytes
    for start, stop, reads in [(0, 10, 0), (rows * 3, rows * 6, 1), (rows * 3 - 1, rows * 6 + 1, 3), (rows * 6, rows * 7, 1)]:
        shards.reads = 0
        head = 0 if stop == 10 else len(file.head)
        assert len(b"".join(file.read(reader(shards, page), head + start, head + stop))) == stop - start
        assert shards.reads == reads


def test_shard_without_any_vector_is_rows_of_nan() -> None:
    page = Page(job_of(2), 0, 2, 2, None, (Span(0, 2),))
    part = Part(0, ResultBlock(dimensions=0, vectors=b"", tokens=(0, 0)), 0, 2)
    file = NpyFile.of(page, FLOAT32)
    array = load(b"".join(file.read(lambda offset, end: iter([part]), 0, file.size_bytes)))
    assert array.shape == (2, DIMENSIONS)
    assert np.isnan(array).all()


def test_file_of_unknown_shape_is_not_ready() -> None:
    with pytest.raises(JobNotReady):
        NpyFile.of(Page(replace(job_of(7, RUNNING), dimensions=None), 0, 0, 0, 0, ()), FLOAT32)


def test_scales_that_are_needed_are_not_lost() -> None:
    page = Page(replace(job_of(7), options=JobOptions(normalize=False)), 0, 7, 7, None, tuple(ALL))
    with pytest.raises(InvalidRequest, match="a scale for each vector") as found:
        NpyFile.of(page, DTYPES["int8"])
    assert found.value.param == "dtype"
    assert NpyFile.of(page, DTYPES["float16"]).size_bytes
