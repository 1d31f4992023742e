"""The lines of a batch's file: each thing that can be wrong has its code, its line, and a message without the text."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from api.batch_input import LINES_IN_BLOCK, MOST_ERRORS, BatchRejected, LineReader, read_batch
from core.config import DEFAULT_MODEL, Settings
from core.errors import InvalidRequest
from core.ledger import LineBlock
from core.models import Models

SETTINGS = Settings(max_batch_inputs=5, max_input_characters=50)
ASKED = {"input_file_id": "file-1", "endpoint": "/v1/embeddings", "completion_window": "24h"}
SECRET = "a private sentence"


def line(custom_id: Any = "a", texts: Any = "text", **more: Any) -> dict[str, Any]:
    body = {"model": DEFAULT_MODEL, "input": texts} | more
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body}


def without(name: str, values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def read(*lines: Any, settings: Settings = SETTINGS, piece_bytes: int = 7) -> tuple[list[str], list[LineBlock], LineReader]:
    """The texts, the blocks of lines, and the reader. A line that is no dict stands in the file as it is."""
    content = b"\n".join(json.dumps(item).encode() if isinstance(item, dict) else item for item in lines)
    blocks: list[LineBlock] = []

    def store(number: int, block: LineBlock) -> None:
        assert number == len(blocks)
        blocks.append(block)

    def pieces() -> Iterator[bytes]:
        for first in range(0, len(content), piece_bytes):
            yield content[first : first + piece_bytes]

    reader = LineReader(settings, Models.of(settings), lambda model: [], read_batch(ASKED, settings), store)
    return [item.text for item in reader.read(pieces())], blocks, reader


def errors_of(*lines: Any, settings: Settings = SETTINGS) -> list[tuple[str, int | None, str | None]]:
    with pytest.raises(BatchRejected) as rejected:
        read(*lines, settings=settings)
    assert SECRET not in str([error.message for error in rejected.value.errors])
    return [(error.code, error.line, error.param) for error in rejected.value.errors]


def test_lines_become_inputs_and_blocks() -> None:
    lines = [line("a", "one"), b"", line("b", ["two", "three"], encoding_format="base64", user="u"), b"  "]
    texts, blocks, reader = read(*lines)
    assert texts == ["one", "two", "three"]
    assert blocks == [LineBlock(0, ("a", "b"), (1, 2), (False, True))]
    assert LineBlock.unpack(blocks[0].pack()) == blocks[0]
    assert (reader.lines, reader.inputs, reader.blocks) == (2, 3, 1)


def test_blocks_say_where_their_inputs_begin() -> None:
    many = 2 * LINES_IN_BLOCK + 1
    lines = [line(f"n{n}", ["text", "more"]) for n in range(many)]
    _, blocks, _ = read(*lines, settings=Settings(), piece_bytes=100_000)
    assert [(block.first, len(block.ids)) for block in blocks] == [
        (0, LINES_IN_BLOCK),
        (2 * LINES_IN_BLOCK, LINES_IN_BLOCK),
        (4 * LINES_IN_BLOCK, 1),
    ]


def test_options_of_the_lines_are_those_of_the_job() -> None:
    _, _, reader = read(line("a", dimensions=4, prompt_name="query", truncate="chunk", chunk_overlap=8))
    assert reader.request is not None
    options = reader.request.job_options
    assert (options.dimensions, options.prompt_name, options.truncate, options.chunk_overlap) == (4, "query", "chunk", 8)


WRONG: dict[str, tuple[Any, str, str | None]] = {
    "no JSON": (b'{"custom_id": "a private sentence"', "invalid_json_line", None),
    "a list": (b"[1]", "invalid_json_line", None),
    "a lone surrogate": (b'"\\ud800"', "invalid_json_line", None),
    "no custom_id": (without("custom_id", line()), "missing_required_parameter", "custom_id"),
    "custom_id null": (line(None), "missing_required_parameter", "custom_id"),
    "custom_id a number": (line(7), "invalid_request", "custom_id"),
    "custom_id empty": (line(""), "invalid_request", "custom_id"),
    "custom_id long": (line("x" * 513), "invalid_request", "custom_id"),
    "no method": (without("method", line()), "missing_required_parameter", "method"),
    "GET": (line() | {"method": "GET"}, "invalid_request", "method"),
    "no url": (without("url", line()), "missing_required_parameter", "url"),
    "another url": (line() | {"url": "/v1/chat/completions"}, "url_mismatch", "url"),
    "no body": (without("body", line()), "missing_required_parameter", "body"),
    "body a text": (line() | {"body": SECRET}, "invalid_request", "body"),
    "no model": (line() | {"body": {"input": "x"}}, "missing_required_parameter", "body.model"),
    "another model": (line(model="gpt"), "model_not_found", "body.model"),
    "no input": (line() | {"body": {"model": DEFAULT_MODEL}}, "missing_required_parameter", "body.input"),
    "input an object": (line(texts={"text": SECRET}), "invalid_request", "body.input"),
    "input empty": (line(texts=""), "invalid_request", "body.input"),
    "no inputs": (line(texts=[]), "invalid_request", "body.input"),
    "an empty input": (line(texts=["x", ""]), "invalid_request", "body.input[1]"),
    "a long input": (line(texts=[SECRET * 3]), "invalid_request", "body.input[0]"),
    "token ids": (line(texts=[1, 2]), "invalid_request", "body.input[0]"),
    "lists of token ids": (line(texts=[[1, 2]]), "invalid_request", "body.input[0]"),
    "too many inputs": (line(texts=["x"] * 6), "too_many_tasks", "body.input"),
    "more inputs than a line may have": (line(texts=["x"] * 2049), "invalid_request", "body.input"),
    "another encoding": (line(encoding_format="int8"), "invalid_request", "body.encoding_format"),
    "dimensions 0": (line(dimensions=0), "invalid_request", "body.dimensions"),
    "dimensions a string": (line(dimensions="4"), "invalid_request", "body.dimensions"),
    "truncate unknown": (line(truncate="middle"), "invalid_request", "body.truncate"),
    "an unknown key": (line(temperature=1), "invalid_request", None),
}


@pytest.mark.parametrize(("wrong", "code", "param"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_with_a_line_has_a_code(wrong: Any, code: str, param: str | None) -> None:
    assert errors_of(wrong, line("b")) == [(code, 1, param)]


def test_token_ids_are_refused_with_what_to_do() -> None:
    with pytest.raises(BatchRejected) as rejected:
        read(line(texts=[1, 2]))
    assert "check_embedding_ctx_length=False" in rejected.value.errors[0].message


DIFFERS = {"dimensions": 8, "prompt_name": "document", "truncate": "error"}


@pytest.mark.parametrize("name", DIFFERS)
def test_lines_must_agree_in_their_options(name: str) -> None:
    assert errors_of(line("a"), line("b"), line("c", **{name: DIFFERS[name]})) == [("invalid_request", 3, f"body.{name}")]


def test_default_may_be_given_or_left_out() -> None:
    read(line("a"), line("b", truncate="end"))


def test_lines_must_agree_in_their_model() -> None:
    assert errors_of(line("a"), line("b", model="another")) == [("model_mismatch", 2, "body.model")]


def test_custom_id_is_used_once() -> None:
    assert errors_of(line("a"), line("b"), line("a"), line("a")) == [
        ("duplicate_custom_id", 3, "custom_id"),
        ("duplicate_custom_id", 4, "custom_id"),
    ]


def test_too_many_lines_are_told_once() -> None:
    assert errors_of(*[line(f"n{n}") for n in range(8)]) == [("too_many_tasks", None, None)]


def test_file_without_lines() -> None:
    assert errors_of(b" \n\n") == [("empty_file", None, None)]


def test_first_hundred_errors_are_told() -> None:
    found = errors_of(*[b"nonsense"] * 150, settings=Settings())
    assert [line for _, line, _ in found] == list(range(1, MOST_ERRORS + 1))


def test_line_without_end_is_not_held() -> None:
    settings = Settings(max_body_bytes=1024)
    assert errors_of(b"x" * 100_000, settings=settings) == [("invalid_request", None, None)]


REFUSED = [
    ({"endpoint": "/v1/responses"}, "endpoint"),
    ({"completion_window": "24"}, "completion_window"),
    ({"completion_window": "8d"}, "completion_window"),
    ({"completion_window": "0h"}, "completion_window"),
    ({"input_file_id": None}, "input_file_id"),
    ({"metadata": {"k": 1}}, "metadata.k"),
    ({"metadata": {str(n): "v" for n in range(17)}}, "metadata"),
    ({"metadata": {"k" * 65: "v"}}, "metadata"),
    ({"metadata": {"k": "v" * 513}}, "metadata"),
    ({"output_expires_after": {"anchor": "now", "seconds": 3600}}, "output_expires_after.anchor"),
    ({"output_expires_after": {"anchor": "created_at", "seconds": 60}}, "output_expires_after.seconds"),
    ({"output_expires_after": {"anchor": "created_at", "seconds": 2592001}}, "output_expires_after.seconds"),
    ({"queue": "tpu"}, "queue"),
]


@pytest.mark.parametrize(("changed", "param"), REFUSED)
def test_request_that_cannot_be_done_names_the_field(changed: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_batch(ASKED | changed, Settings())
    assert refused.value.param == param


@pytest.mark.parametrize(("window", "seconds"), [("1h", 3600), ("24h", 86_400), ("168h", 604_800), ("7d", 604_800)])
def test_window_may_be_hours_or_days(window: str, seconds: int) -> None:
    assert read_batch(ASKED | {"completion_window": window}, Settings()).window_seconds == seconds
