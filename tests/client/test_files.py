"""What the command reads and writes, without a service."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from core.keys import Keys, Owner
from vector_api_client.cli.keys import make_key
from vector_api_client.cli.readers import BadFile, Columns, Entry, format_of, read
from vector_api_client.cli.state import State
from vector_api_client.cli.writers import Row, writer_for
from vector_api_client.errors import BadSetting


def entries(folder: Path, name: str, content: bytes, **columns: str) -> list[Entry]:
    file = folder / name
    file.write_bytes(content)
    return list(read(str(file), format_of(name, None), Columns(**columns)))


def shown(found: list[Entry]) -> list[tuple[int, Any]]:
    return [(entry.number, entry.problem or entry.input) for entry in found]


def test_text_has_a_passage_a_line_and_blank_ones_are_none(tmp_path: Path) -> None:
    found = entries(tmp_path, "a.txt", b"\xef\xbb\xbfone\r\n\n   \n two \nno UTF-8: \xff\nlast")
    assert shown(found) == [(1, "one"), (4, " two "), (5, "is not UTF-8 at byte 11"), (6, "last")]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'"a text"', "a text"),
        (b'{"text": "t", "id": 7, "more": 1}', {"text": "t", "id": "7"}),
        (b'{"text": "t", "id": null}', "t"),
        (b'{"text": "t", "id": true}', "the id must be a string or a whole number, got true or false"),
        (b'{"text": null}', "text must be a string, got nothing (null)"),
        (b'{"id": "x"}', "has no 'text'; it has: id"),
        (b"[1]", "must be a string or an object, got a list"),
        (b'{"text": ', "is not valid JSON at column 10: unexpected end of data"),
        (b'"\\ud800"', "is not valid JSON at column"),
    ],
)
def test_jsonl_lines(line: bytes, found: Any, tmp_path: Path) -> None:
    (first, (number, second)) = shown(entries(tmp_path, "a.jsonl", b'{"text": "first", "id": "1"}\n' + line + b"\n"))
    assert first == (1, {"text": "first", "id": "1"})
    assert number == 2
    assert second == found or (isinstance(found, str) and second.startswith(found))


def test_csv_counts_lines_of_the_file_and_not_rows(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbfid,body\r\n1,"two\nlines"\n2,x\n3\n4,"\xff"\n\n5,"un"closed\n6,last\n'
    assert shown(entries(tmp_path, "a.csv", content, text="body")) == [
        (2, {"text": "two\nlines", "id": "1"}),
        (4, {"text": "x", "id": "2"}),
        (5, "has 1 columns, the first line has 2"),
        (6, "is not UTF-8"),
        (8, "is not valid CSV: ',' expected after '\"'"),
        (9, {"text": "last", "id": "6"}),
    ]


def test_parquet_rows(tmp_path: Path) -> None:
    table = pa.table({"body": ["one", None, "three"], "key": [1, 2, 3], "heavy": [[0.1], [0.2], [0.3]]})
    parquet.write_table(table, tmp_path / "a.parquet")
    found = read(str(tmp_path / "a.parquet"), "parquet", Columns("body", "key"))
    assert shown(list(found)) == [
        (1, {"text": "one", "id": "1"}),
        (2, "body must be a string, got nothing (null)"),
        (3, {"text": "three", "id": "3"}),
    ]


@pytest.mark.parametrize(
    ("name", "content", "columns", "problem"),
    [
        ("a.csv", b"id,body\n", {}, "several columns; say which one holds the texts with --column. They are: id, body"),
        ("a.csv", b"id,body\n", {"text": "bdoy"}, "has no column 'bdoy'; its columns are: id, body"),
        ("a.csv", b"id,body\n", {"text": "body", "id": "key"}, "has no column 'key'; its columns are: id, body"),
        ("a.csv", b"", {}, "is empty; its first line must name the columns"),
        ("a.jsonl", b'{"id": 1, "body": "x"}', {"text": "bdoy"}, "line 1 of .* has no column 'bdoy'; its columns are: id, body"),
        ("a.txt", b"a", {"text": "body"}, "is read as text, which has no columns"),
        ("a.parquet", b"no parquet", {}, "cannot be read as Parquet"),
    ],
)
def test_file_that_cannot_be_used_says_why(
    name: str, content: bytes, columns: dict[str, str], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(BadFile, match=problem):
        entries(tmp_path, name, content, **columns)


def test_only_column_needs_no_name(tmp_path: Path) -> None:
    assert shown(entries(tmp_path, "a.csv", b"anything\nx\n")) == [(2, "x")]


@pytest.mark.parametrize("name", ["-", "texts", "texts.doc"])
def test_unknown_format_asks_for_one(name: str) -> None:
    with pytest.raises(BadFile, match="--format: text, jsonl, csv, parquet"):
        format_of(name, None)


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BadFile, match="pip install pyarrow"):
        writer_for(Path("a.parquet"))


# Writers --------------------------------------------------------------------------------------------------------------

ROWS = [
    Row(0, 1, error="bad_line"),
    Row(1, 2, "b", np.array([1, 2.5], dtype=np.float32), 3, True),
    Row(2, 4, None, np.array([0.1, 4], dtype=np.float32), 5),
    Row(3, 5, "d", error="text_too_long"),
]


def rows_of(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text().splitlines()]
    found: list[dict[str, Any]] = parquet.read_table(file).to_pylist()
    return found


@pytest.mark.parametrize("ending", ["npy", "jsonl", "parquet"])
@pytest.mark.parametrize("stop", range(len(ROWS) + 1))
def test_output_is_the_same_wherever_a_run_was_cut(ending: str, stop: int, tmp_path: Path) -> None:
    """The first run writes `stop` rows, and a few bytes more that nobody knows of."""
    part, output = tmp_path / "part", tmp_path / f"out.{ending}"
    kind = writer_for(output)
    with part.open("w+b") as file:
        first = kind(file, rows=0, dimensions=None)
        for row in ROWS[:stop]:
            first.write([row])
        size = file.tell()
        file.write(b"torn")
    with part.open("r+b") as file:
        file.truncate(size)
        file.seek(size)
        second = kind(file, rows=stop, dimensions=first.dimensions)
        if stop < len(ROWS):
            second.write(ROWS[stop:])
        second.finish(output)
    assert [path.name for path in tmp_path.iterdir()] == [output.name]
    if ending == "npy":
        found = np.load(output)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, np.array([[np.nan] * 2, [1, 2.5], [0.1, 4], [np.nan] * 2], dtype=np.float32))
        return
    rows = rows_of(output)
    assert [(row["index"], row["line"], row["id"], row["tokens"], row["truncated"], row["error"]) for row in rows] == [
        (row.index, row.line, row.id, row.tokens, row.truncated, row.error) for row in ROWS
    ]
    assert [row["embedding"] and np.float32(row["embedding"]).tolist() for row in rows] == [
        None if row.embedding is None else row.embedding.tolist() for row in ROWS
    ]


def test_npy_without_any_vector_can_be_loaded(tmp_path: Path) -> None:
    with (tmp_path / "part").open("w+b") as file:
        writer = writer_for(Path("a.npy"))(file, rows=0, dimensions=None)
        writer.write([ROWS[0], ROWS[3]])
        writer.finish(tmp_path / "a.npy")
    assert np.load(tmp_path / "a.npy").shape == (2, 0)


def test_state_comes_back_and_another_version_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    assert State.load(file) is None
    state = State("http://x", "digest", "key", {"queue": "gpu"}, job="job_1", rows=3, part_bytes=9)
    state.save(file)
    assert State.load(file) == state
    file.write_bytes(file.read_bytes().replace(b'"version": 1', b'"version": 2'))
    with pytest.raises(BadFile, match="--overwrite starts anew"):
        State.load(file)


def test_key_line_is_one_that_the_service_reads(tmp_path: Path) -> None:
    key, line = make_key("alice.b-c_1")
    (tmp_path / "keys").write_text(line)
    assert Keys.read(tmp_path / "keys").owner_of(key) == Owner("alice.b-c_1")
    assert key.startswith("va_")
    assert len(key) == len("va_") + 43
    for name in ("", "a b", "a:b", "x" * 65, "ä"):
        with pytest.raises(BadSetting):
            make_key(name)


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\ntwo\n")))
    assert shown(list(read("-", "text", Columns()))) == [(1, "one"), (2, "two")]
