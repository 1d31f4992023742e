"""Arrow streams and Parquet files, read back by pyarrow."""

import io
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from api import tables
from api.dtypes import DTYPES, FLOAT32, Dtype
from api.results import Page, Part
from core.errors import InvalidRequest, JobNotReady
from core.sharding import Span
from tests.unit.test_results import ALL, DIMENSIONS, FAILED, RUNNING, FinishedShards, job_of, vector

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

BOTH = ["arrow", "parquet"]


def write(chosen: str, page: Page, parts: Iterator[Part], dtype: Dtype = FLOAT32) -> list[bytes]:
    table = tables.open_table(page, dtype)
    return list((tables.write_arrow if chosen == "arrow" else tables.write_parquet)(table, parts))


def load(chosen: str, raw: bytes) -> Any:
    return pa.ipc.open_stream(raw).read_all() if chosen == "arrow" else pq.read_table(io.BytesIO(raw))


@pytest.mark.parametrize("chosen", BOTH)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
@pytest.mark.parametrize(("offset", "limit"), [(0, None), (2, 3), (4, 1), (7, None)])
def test_table_has_a_row_for_each_input(chosen: str, dtype: Dtype, offset: int, limit: int | None) -> None:
    shards = FinishedShards(job_of(7), ALL, FAILED)
    page = shards.page(offset, limit)
    found = load(chosen, b"".join(write(chosen, page, shards.parts(page), dtype)))
    assert found.schema.field("embedding").type.list_size == dtype.width(DIMENSIONS)
    assert ("scale" in found.column_names) == dtype.scaled
    rows = found.to_pylist()
    assert [row["index"] for row in rows] == list(range(offset, page.end))
    for row in rows:
        index = row["index"]
        error = tuple(row[f"error_{name}"] for name in ("code", "message", "retryable"))
        assert row["id"] is None
        if index in FAILED:
            assert (row["embedding"], row.get("scale"), error) == (None, None, ("code", "message", True))
            continue
        numbers, scales = dtype.of(np.array([vector(index)], dtype="<f4"))
        assert np.array(row["embedding"], dtype=dtype.numpy).tobytes() == numbers.tobytes(), "every bit of every number"
        assert scales is None or row["scale"] == scales[0]
        assert (row["tokens"], row["truncated"], error) == (index % 3, index % 3 == 0, (None, None, None))


@pytest.mark.parametrize("chosen", BOTH)
def test_schema_tells_what_the_vectors_are(chosen: str) -> None:
    shards = FinishedShards(replace(job_of(7), revision="r", dtype="bfloat16"), ALL)
    found = load(chosen, b"".join(write(chosen, shards.page(), shards.parts(shards.page()), DTYPES["int8"])))
    told = json.loads(found.schema.metadata[b"vector-api"])
    wanted = {"job": "j", "model": "m", "revision": "r", "dimensions": DIMENSIONS, "normalize": True, "total": 7}
    assert told | wanted | {"dtype": "bfloat16", "embedding_dtype": "int8"} == told


def test_small_shards_share_a_row_group_and_large_ones_do_not() -> None:
    spans = [Span(n, 1) for n in range(20_000)]
    shards = FinishedShards(job_of(20_000), spans)
    page = shards.page()
    pieces = write("parquet", page, shards.parts(page))
    file = pq.ParquetFile(io.BytesIO(b"".join(pieces)))
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [8192, 8192, 3616]
    batches = pa.ipc.open_stream(b"".join(write("arrow", page, shards.parts(page))))
    assert [batch.num_rows for batch in batches] == [8192, 8192, 3616]


def test_group_of_long_vectors_is_limited_by_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "GROUP_BYTES", 4 * DIMENSIONS * 4)
    shards = FinishedShards(job_of(7), ALL)
    file = pq.ParquetFile(io.BytesIO(b"".join(write("parquet", shards.page(), shards.parts(shards.page())))))
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [3, 4]


@pytest.mark.parametrize("chosen", BOTH)
def test_group_is_sent_before_the_next_is_read(monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    monkeypatch.setattr(tables, "GROUP_ROWS", 3)
    shards = FinishedShards(job_of(30), [Span(n, 3) for n in range(0, 30, 3)])
    page = shards.page()
    table = tables.open_table(page, FLOAT32)
    pieces = (tables.write_arrow if chosen == "arrow" else tables.write_parquet)(table, shards.parts(page))
    assert len(next(pieces)) > 3 * 4 * DIMENSIONS
    assert shards.reads == 2, "the second one begins the next group"
    next(pieces)
    assert shards.reads == 3
    pieces.close()  # a client that goes away


@pytest.mark.parametrize("chosen", BOTH)
def test_table_of_an_unknown_shape_is_not_ready(chosen: str) -> None:
    with pytest.raises(JobNotReady):
        write(chosen, Page(replace(job_of(7, RUNNING), dimensions=None), 0, 0, 0, 0, ()), iter(()))


def test_missing_pyarrow_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidRequest, match="need the Python package pyarrow") as found:
        tables.open_table(FinishedShards(job_of(7), ALL).page(), FLOAT32)
    assert (found.value.param, found.value.code) == ("format", "format_unavailable")
