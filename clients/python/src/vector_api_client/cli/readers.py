"""The texts of a file: plain text, JSONL, CSV or Parquet, one after the other, never the whole file at once."""

import csv
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from vector_api_client.errors import VectorApiError
from vector_api_client.inputs import Input

FORMATS = ("text", "jsonl", "csv", "parquet")
BY_EXTENSION = {".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
TEXT_COLUMN, ID_COLUMN = "text", "id"
STANDARD_INPUT = "-"
BOM = b"\xef\xbb\xbf"
PARQUET_ROWS = 1000


class BadFile(VectorApiError):
    """The file as a whole cannot be used."""


@dataclass(frozen=True)
class Entry:
    """What stands on a line, or in a row, counted from 1: an input, or why it is none."""

    number: int
    input: Input | None = None
    problem: str = ""


@dataclass(frozen=True)
class Columns:
    """Which column holds the text and which the id; None: the one with the usual name, if there is one."""

    text: str | None = None
    id: str | None = None

    def choose(self, names: list[str], file: str) -> tuple[str, str | None]:
        """The columns' names in a file that has these.

        Raises:
            BadFile: it has not what was asked for.
        """
        listed = ", ".join(names)
        for wanted in (self.text, self.id):
            if wanted is not None and wanted not in names:
                raise BadFile(f"{file} has no column {wanted!r}; its columns are: {listed}")
        text = self.text or (TEXT_COLUMN if TEXT_COLUMN in names else names[0] if len(names) == 1 else None)
        if text is None:
            raise BadFile(f"{file} has several columns; say which one holds the texts with --column. They are: {listed}")
        return text, self.id or (ID_COLUMN if ID_COLUMN in names and text != ID_COLUMN else None)


def format_of(file: str, given: str | None) -> str:
    """The format of a file.

    Raises:
        BadFile: its name does not tell, and nobody else did.
    """
    if given is not None:
        return given
    found = BY_EXTENSION.get(Path(file).suffix.lower())
    if found is None:
        what = "the standard input" if file == STANDARD_INPUT else file
        raise BadFile(f"say what is in {what} with --format: {', '.join(FORMATS)}")
    return found


def read(file: str, file_format: str, columns: Columns) -> Iterator[Entry]:
    """The entries of a file, or of the standard input. Blank lines of text and JSONL are none.

    Raises:
        BadFile: it cannot be read or lacks a column.
    """
    shown = "the standard input" if file == STANDARD_INPUT else file
    try:
        if file_format == "parquet":
            yield from _read_parquet(file, columns)
        elif file == STANDARD_INPUT:
            yield from READERS[file_format](sys.stdin.buffer, columns, shown)
        else:
            with open(file, "rb") as source:
                yield from READERS[file_format](source, columns, shown)
    except OSError as error:
        raise BadFile(f"{shown} cannot be read: {error.strerror or error}") from None


def _lines(source: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, without their ends, numbered from 1."""
    for number, line in enumerate(source, start=1):
        content = line.removeprefix(BOM) if number == 1 else line
        if content.strip():
            yield number, content.rstrip(b"\r\n")


def _read_text(source: BinaryIO, columns: Columns, file: str) -> Iterator[Entry]:
    if columns.text or columns.id:
        raise BadFile(f"{file} is read as text, which has no columns; --format says what else it is")
    for number, line in _lines(source):
        try:
            yield Entry(number, line.decode())
        except UnicodeDecodeError as error:
            yield Entry(number, problem=f"is not UTF-8 at byte {error.start + 1}")


def _read_jsonl(source: BinaryIO, columns: Columns, file: str) -> Iterator[Entry]:
    chosen: tuple[str, str | None] | None = None
    for number, line in _lines(source):
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            yield Entry(number, problem=f"is not valid JSON at column {error.pos + 1}: {error.msg}")
            continue
        if isinstance(value, dict):
            chosen = chosen or columns.choose(list(value), f"line {number} of {file}")
        yield _entry(number, value, chosen)


def _entry(number: int, value: object, chosen: tuple[str, str | None] | None) -> Entry:
    if isinstance(value, str):
        return Entry(number, value)
    if not isinstance(value, dict) or chosen is None:
        return Entry(number, problem=f"must be a string or an object, got {_kind(value)}")
    text, identity = chosen
    if text not in value:
        return Entry(number, problem=f"has no {text!r}; it has: {', '.join(map(str, list(value)[:10])) or 'nothing'}")
    return _made(number, value[text], value.get(identity) if identity else None, text)


def _made(number: int, text: object, identity: object, column: str) -> Entry:
    """An entry of a text and an id of any type."""
    if not isinstance(text, str):
        return Entry(number, problem=f"{column} must be a string, got {_kind(text)}")
    if identity is None:
        return Entry(number, text)
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        return Entry(number, problem=f"the id must be a string or a whole number, got {_kind(identity)}")
    return Entry(number, {"text": text, "id": str(identity)})


def _kind(value: object) -> str:
    match value:
        case None:
            return "nothing (null)"
        case list():
            return "a list"
        case Mapping():
            return "an object"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case _:
            return type(value).__name__


def _read_csv(source: BinaryIO, columns: Columns, file: str) -> Iterator[Entry]:
    csv.field_size_limit(2**31 - 1)
    # What is not UTF-8 becomes lone surrogates, which are found again in the row that has them.
    lines = (line.decode("utf-8", "surrogateescape") for line in _without_bom(source))
    rows = csv.reader(lines, strict=True)
    try:
        header = next(rows, None)
    except csv.Error as error:
        raise BadFile(f"{file} has a first line that is not CSV: {error}") from None
    if not header:
        raise BadFile(f"{file} is empty; its first line must name the columns")
    text, identity = columns.choose(header, file)
    at, id_at = header.index(text), header.index(identity) if identity else None
    while True:
        number = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield Entry(number, problem=f"is not valid CSV: {error}")
            continue
        if row is None:
            return
        if not row:
            continue
        if len(row) != len(header):
            yield Entry(number, problem=f"has {len(row)} columns, the first line has {len(header)}")
        elif not all(_is_utf8(row[place]) for place in (at, id_at) if place is not None):
            yield Entry(number, problem="is not UTF-8")
        else:
            yield _made(number, row[at], row[id_at] if id_at is not None else None, text)


def _without_bom(source: BinaryIO) -> Iterator[bytes]:
    for number, line in enumerate(source):
        yield line if number else line.removeprefix(BOM)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_parquet(file: str, columns: Columns) -> Iterator[Entry]:
    if file == STANDARD_INPUT:
        raise BadFile("Parquet cannot be read from the standard input; name the file")
    pyarrow, parquet = require_pyarrow()
    try:
        with parquet.ParquetFile(file) as source:
            schema = source.schema_arrow
            text, identity = columns.choose(schema.names, file)
            wanted = [text, identity] if identity else [text]
            number = 0
            for batch in source.iter_batches(batch_size=PARQUET_ROWS, columns=wanted):
                texts = batch.column(text).to_pylist()
                ids = batch.column(identity).to_pylist() if identity else [None] * len(texts)
                for value, found in zip(texts, ids, strict=True):
                    number += 1
                    yield _made(number, value, found, text)
    except pyarrow.ArrowException as error:
        raise BadFile(f"{file} cannot be read as Parquet: {str(error).splitlines()[0]}") from None


def require_pyarrow() -> tuple[Any, Any]:
    """pyarrow and its Parquet module.

    Raises:
        BadFile: it is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise BadFile("Parquet needs the package pyarrow: pip install pyarrow") from None
    return pyarrow, parquet


READERS: dict[str, Callable[[BinaryIO, Columns, str], Iterable[Entry]]] = {
    "text": _read_text,
    "jsonl": _read_jsonl,
    "csv": _read_csv,
}
