"""Vectors into files. A writer only ever appends to its part file, so that a later run can go on where it ended.

When all rows are there the part file becomes the output, whole, in one step.
"""

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from vector_api_client.cli.readers import BadFile, require_pyarrow
from vector_api_client.records import Vector

FORMATS = {".npy": "npy", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
NPY_HEAD_BYTES = 128
NAN_ROWS = 1024
ROW_GROUP_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Row:
    """One line of the output. `error` is a code: why there is no embedding."""

    index: int
    line: int
    id: str | None = None
    embedding: Vector | None = None
    tokens: int = 0
    truncated: bool = False
    error: str | None = None


class Writer(ABC):
    """Writes rows, in order, to the end of the part file.

    Args:
        dimensions: as far as an earlier run found them.
        rows: how many are written.
    """

    def __init__(self, part: BinaryIO, *, rows: int, dimensions: int | None) -> None:
        self.part = part
        self.rows = rows
        self.dimensions = dimensions

    def write(self, rows: Sequence[Row]) -> None:
        if self.dimensions is None:
            self.dimensions = next((len(row.embedding) for row in rows if row.embedding is not None), None)
        self._append(rows)
        self.rows += len(rows)

    @abstractmethod
    def _append(self, rows: Sequence[Row]) -> None: ...

    def finish(self, output: Path) -> None:
        """Turn the part file into the output."""
        self._complete()
        self.sync()
        os.replace(self.part.name, output)

    def _complete(self) -> None:
        """What is still to be written into the part file."""
        return

    def sync(self) -> None:
        """Make what is written last."""
        self.part.flush()
        os.fsync(self.part.fileno())


class NpyWriter(Writer):
    """An array for `numpy.load`: float32, (rows, dimensions), NaN where there is no embedding.

    Its head tells the shape, so it is written last, into room that is left for it.
    """

    def _append(self, rows: Sequence[Row]) -> None:
        if self.part.tell() < NPY_HEAD_BYTES:
            self.part.write(bytes(NPY_HEAD_BYTES))
        if self.dimensions is None:
            return  # rows of an unknown length: they are written with the first that has one
        if self.part.tell() == NPY_HEAD_BYTES:
            for first in range(0, self.rows, NAN_ROWS):
                self.part.write(self._blank(min(NAN_ROWS, self.rows - first)).tobytes())
        block = self._blank(len(rows))
        for place, row in enumerate(rows):
            if row.embedding is not None:
                block[place] = row.embedding
        self.part.write(block.tobytes())

    def _blank(self, rows: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        return np.full((rows, self.dimensions or 0), np.nan, dtype="<f4")

    def _complete(self) -> None:
        head = io.BytesIO()
        shape = (self.rows, self.dimensions or 0)
        np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
        if head.tell() != NPY_HEAD_BYTES:
            raise BadFile(f"the head of a .npy file took {head.tell()} bytes")
        self.part.seek(0)
        self.part.write(head.getvalue())
        self.part.seek(0, os.SEEK_END)


class JsonlWriter(Writer):
    """One object a line."""

    def _append(self, rows: Sequence[Row]) -> None:
        option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
        self.part.write(b"".join(orjson.dumps(_as_record(row), option=option) for row in rows))


def _as_record(row: Row) -> dict[str, Any]:
    return {
        "index": row.index,
        "line": row.line,
        "id": row.id,
        "embedding": row.embedding,
        "tokens": row.tokens,
        "truncated": row.truncated,
        "error": row.error,
    }


class ParquetWriter(Writer):
    """A Parquet file. It cannot be appended to, so the part file is an Arrow stream that becomes one at the end."""

    def __init__(self, part: BinaryIO, *, rows: int, dimensions: int | None) -> None:
        super().__init__(part, rows=rows, dimensions=dimensions)
        self._arrow, self._parquet = require_pyarrow()
        arrow = self._arrow
        self._schema = arrow.schema(
            [
                ("index", arrow.int64()),
                ("line", arrow.int64()),
                ("id", arrow.string()),
                ("embedding", arrow.list_(arrow.float32())),
                ("tokens", arrow.int32()),
                ("truncated", arrow.bool_()),
                ("error", arrow.string()),
            ]
        )

    def _append(self, rows: Sequence[Row]) -> None:
        if not self.part.tell():
            self.part.write(self._schema.serialize())
        plain = [[getattr(row, name) for row in rows] for name in self._schema.names if name != "embedding"]
        columns = [
            self._arrow.array(values, type=self._schema.field(name).type)
            for name, values in zip([name for name in self._schema.names if name != "embedding"], plain, strict=True)
        ]
        columns.insert(self._schema.names.index("embedding"), self._embeddings(rows))
        self.part.write(self._arrow.record_batch(columns, schema=self._schema).serialize())

    def _embeddings(self, rows: Sequence[Row]) -> Any:
        lengths = [len(row.embedding) if row.embedding is not None else 0 for row in rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        found = [row.embedding for row in rows if row.embedding is not None]
        values = np.concatenate(found) if found else np.empty(0, dtype=np.float32)
        missing = self._arrow.array([row.embedding is None for row in rows])
        return self._arrow.ListArray.from_arrays(offsets, self._arrow.array(values), mask=missing)

    def finish(self, output: Path) -> None:
        self.sync()
        whole = output.with_name(output.name + ".whole")
        with open(self.part.name, "rb") as source, self._parquet.ParquetWriter(whole, self._schema) as target:
            for table in self._row_groups(source):
                target.write_table(table)
        os.replace(whole, output)
        os.unlink(self.part.name)

    def _row_groups(self, source: BinaryIO) -> Iterator[Any]:
        group: list[Any] = []
        size_bytes = 0
        for batch in self._arrow.ipc.open_stream(source):
            group.append(batch)
            size_bytes += batch.nbytes
            if size_bytes >= ROW_GROUP_BYTES:
                yield self._arrow.Table.from_batches(group)
                group, size_bytes = [], 0
        if group:
            yield self._arrow.Table.from_batches(group)


WRITERS: dict[str, type[Writer]] = {"npy": NpyWriter, "jsonl": JsonlWriter, "parquet": ParquetWriter}


def writer_for(output: Path) -> type[Writer]:
    """What writes a file of this name.

    Raises:
        BadFile: no format has this extension, or what it needs is not installed.
    """
    chosen = FORMATS.get(output.suffix.lower())
    if chosen is None:
        raise BadFile(f"the output must end in {', '.join(FORMATS)}; got {output.name!r}")
    if chosen == "parquet":
        require_pyarrow()
    return WRITERS[chosen]
