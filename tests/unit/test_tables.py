"""Arrow streams and Parquet files, read back by pyarrow."""

import io
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from api import create_app, tables
from api.app import MOST_TABLES
from api.dtypes import DTYPES, FLOAT32, Dtype
from api.results import Page, Part
from core.blocks import ResultBlock
from core.config import Settings
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
    spans = [Span(n, 1) for n in range(9_000)]
    shards = FinishedShards(job_of(9_000), spans)
    page = shards.page()
    pieces = write("parquet", page, shards.parts(page))
    file = pq.ParquetFile(io.BytesIO(b"".join(pieces)))
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [4096, 4096, 808]
    batches = pa.ipc.open_stream(b"".join(write("arrow", page, shards.parts(page))))
    assert [batch.num_rows for batch in batches] == [4096, 4096, 808]


@pytest.mark.parametrize(("name", "bytes_each"), [("float32", 4), ("float16", 2), ("int8", 1), ("binary", 1 / 8)])
def test_parquet_takes_no_more_than_the_numbers_need(name: str, bytes_each: float) -> None:
    count, dimensions = 4096, 384
    vectors = np.random.default_rng(3).standard_normal((count, dimensions)).astype("<f4")
    part = Part(0, ResultBlock(dimensions, vectors.tobytes(), (7,) * count), 0, count)
    page = Page(replace(job_of(count), dimensions=dimensions), 0, count, count, None, (Span(0, count),))
    size = len(b"".join(write("parquet", page, iter([part]), DTYPES[name])))
    assert size / count < dimensions * bytes_each * 1.13 + 24


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


def test_no_more_tables_are_written_at_a_time_than_memory_allows() -> None:
    app = create_app(Settings(), ledger=FinishedShards(job_of(7), ALL))

    def get(chosen: str) -> Any:
        return app.test_client().get(f"/v1/jobs/j/result?format={chosen}")

    answers = [get("arrow") for _ in range(MOST_TABLES)]  # nobody has read them yet
    assert {answer.status_code for answer in answers} == {200}
    refused = get("parquet")
    assert (refused.status_code, refused.get_json()["error"]["code"]) == (429, "too_many_at_once")
    assert int(refused.headers["retry-after"]) > 0
    assert get("npy").status_code == 200
    answers.pop().close()
    with get("parquet") as found:
        assert found.status_code == 200
        assert found.data.endswith(b"PAR1")
    assert get("parquet").status_code == 200


def test_missing_pyarrow_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidRequest, match="need the Python package pyarrow") as found:
        tables.open_table(FinishedShards(job_of(7), ALL).page(), FLOAT32)
    assert (found.value.param, found.value.code) == ("format", "format_unavailable")
