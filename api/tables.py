"""A page as a table of Arrow: an IPC stream or a Parquet file. Needs the package pyarrow, which is imported with the first one.

Both are written group by group, several shards to a group, as readers want larger pieces than our shards; one group is held at a
time. Bytes differ between versions of pyarrow.
"""

import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import orjson

from api.dtypes import Dtype, vectors_of
from api.results import Page, Part, dimensions_of
from core.errors import InvalidRequest

GROUP_ROWS = 4096
GROUP_BYTES = 8 * 2**20
"""Most rows and bytes of embeddings in a record batch or row group, but for a shard that is larger by itself."""

METADATA = "vector-api"
"""The key of the schema's metadata, as others have `pandas` and `huggingface`; its value is JSON."""


class Table(NamedTuple):
    """What is the same for all rows."""

    arrow: Any
    """The module pyarrow."""
    dtype: Dtype
    dimensions: int
    schema: Any


def open_table(page: Page, dtype: Dtype) -> Table:
    """The table of a page.

    Raises:
        InvalidRequest: pyarrow is not installed, or the job has no vectors and never will.
        JobNotReady: no shard is finished, so nobody knows the dimensions yet.
    """
    pa, dimensions = _pyarrow(), dimensions_of(page.job)
    numbers = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8(), "binary": pa.uint8()}[dtype.name]
    fields = [
        pa.field("index", pa.int64(), nullable=False),
        pa.field("id", pa.string()),
        pa.field("embedding", pa.list_(numbers, dtype.width(dimensions))),
        *([pa.field("scale", pa.float32())] if dtype.scaled else []),
        pa.field("tokens", pa.int32(), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
        pa.field("error_retryable", pa.bool_()),
    ]
    return Table(pa, dtype, dimensions, pa.schema(fields, {METADATA: orjson.dumps(_metadata(page, dtype))}))


def version() -> str:
    """pyarrow's.

    Raises:
        InvalidRequest: it is not installed.
    """
    return str(_pyarrow().__version__)


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ModuleNotFoundError:
        raise InvalidRequest(
            "the formats arrow and parquet need the Python package pyarrow, which this API was installed without "
            "(requirements-arrow.txt has it); npy, ndjson, json and base64 need nothing",
            param="format",
            code="format_unavailable",
        ) from None
    return pyarrow


def _metadata(page: Page, dtype: Dtype) -> dict[str, Any]:
    job = page.job
    return {
        "job": job.id,
        "model": job.model,
        "revision": job.revision,
        "engine": job.engine,
        "dtype": job.dtype,
        "dimensions": job.dimensions,
        "normalize": job.options.normalize,
        "prompt_name": job.options.prompt_name,
        "truncate": job.options.truncate,
        **({"chunk_overlap": job.options.chunk_overlap} if job.options.truncate == "chunk" else {}),
        "embedding_dtype": dtype.name,
        "offset": page.offset,
        "count": page.count,
        "total": job.counts.total,
    }


def write_arrow(table: Table, parts: Iterator[Part]) -> Iterator[bytes]:
    """An IPC stream."""
    sink = _Sink()
    with table.arrow.ipc.new_stream(sink, table.schema) as writer:
        for group in _groups(table, parts):
            writer.write_batch(group)
            del group
            yield sink.take()
    yield sink.take()


def write_parquet(table: Table, parts: Iterator[Part]) -> Iterator[bytes]:
    """A Parquet file. Vectors do not compress, so it is written as it is, and most of it has no statistics.

    Parquet has no integers of less than four bytes, but places in a dictionary: of 256 values they are a byte each.
    """
    from pyarrow import parquet

    sink = _Sink()
    repetitive = ["error_code", "error_message"] + (["embedding.list.element"] if table.dtype.numpy.itemsize == 1 else [])
    options = {"compression": "none", "use_dictionary": repetitive, "write_statistics": ["index", "id"]}
    with parquet.ParquetWriter(sink, table.schema, **options) as writer:
        for group in _groups(table, parts):
            writer.write_batch(group, row_group_size=group.num_rows)
            del group
            yield sink.take()
    yield sink.take()


def _groups(table: Table, parts: Iterator[Part]) -> Iterator[Any]:
    """Record batches of several shards each."""
    row_bytes = table.dtype.numpy.itemsize * table.dtype.width(table.dimensions)
    most_rows = max(1, min(GROUP_ROWS, GROUP_BYTES // max(1, row_bytes)))
    held: list[Part] = []
    rows = 0
    for part in parts:
        count = part.stop - part.start
        if held and rows + count > most_rows:
            yield _batch(table, held)
            rows = 0
        held.append(part)
        rows += count
    if held:
        yield _batch(table, held)


def _batch(table: Table, held: list[Part]) -> Any:
    """The parts, which are let go, in one record batch."""
    pa = table.arrow
    vectors = [vectors_of(part.block, table.dimensions, part.start, part.stop) for part in held]
    rows, scales = table.dtype.of(vectors[0] if len(vectors) == 1 else np.concatenate(vectors))
    inputs = [(part, position) for part in held for position in range(part.start, part.stop)]
    errors = [part.block.errors.get(position) for part, position in inputs]
    failed = np.array([error is not None for error in errors])
    columns = {
        "index": pa.array([part.first + position for part, position in inputs], pa.int64()),
        "id": pa.array([part.block.ids[position] if part.block.ids else None for part, position in inputs], pa.string()),
        "embedding": pa.FixedSizeListArray.from_arrays(
            pa.array(rows.ravel()), type=table.schema.field("embedding").type, mask=pa.array(failed)
        ),
        "tokens": pa.array([part.block.tokens[position] for part, position in inputs], pa.int32()),
        "truncated": pa.array([position in part.block.truncated for part, position in inputs]),
        "error_code": pa.array([error and error.code for error in errors], pa.string()),
        "error_message": pa.array([error and error.message for error in errors], pa.string()),
        "error_retryable": pa.array([error and error.retryable for error in errors], pa.bool_()),
    }
    if scales is not None:
        columns["scale"] = pa.array(scales, mask=failed)
    held.clear()
    return pa.RecordBatch.from_arrays([columns[name] for name in table.schema.names], schema=table.schema)


class _Sink(io.RawIOBase):
    """A file that is handed on while it is written."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._position = 0

    def writable(self) -> bool:
        return True

    def write(self, piece: Any) -> int:
        self._pieces.append(bytes(piece))
        self._position += len(self._pieces[-1])
        return len(self._pieces[-1])

    def tell(self) -> int:
        return self._position

    def take(self) -> bytes:
        """What was written since it was called last."""
        taken = b"".join(self._pieces)
        self._pieces.clear()
        return taken
