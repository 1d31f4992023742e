"""What `/v1/embeddings` reads and writes."""

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from api.embeddings import failure, read_embeddings, write_embeddings
from api.results import Part, as_base64, as_numbers
from core.blocks import ResultBlock
from core.config import Settings
from core.errors import InputFailed, InvalidRequest, ModelNotFound
from core.jobs import Counts, InputError, Job, JobOptions, JobStatus, Lane
from core.models import Models

SECRET = "a private sentence"
SETTINGS = Settings(max_input_characters=50)


def read(body: Any, **options: Any) -> Any:
    return read_embeddings(json.dumps(body).encode(), SETTINGS, Models.of(SETTINGS), **({"repeatable": False} | options))


def test_request_becomes_a_job_of_the_interactive_lane() -> None:
    asked = read(
        {
            "input": ["a", "b"],
            "model": SETTINGS.model_name,
            "encoding_format": "base64",
            "dimensions": 4,
            "user": "me",
            "prompt_name": "query",
            "truncate": "error",
            "queue": "gpu",
        }
    )
    assert [item.text for item in asked.inputs] == ["a", "b"]
    assert (asked.job.priority, asked.job.queue, asked.encoding_format) == ("interactive", "gpu", "base64")
    assert asked.job.job_options == JobOptions(True, 4, "query", "error")


def test_keys_that_are_null_are_as_if_left_out() -> None:
    everything = ("model", "encoding_format", "dimensions", "user", "prompt_name", "truncate", "queue")
    assert read({"input": "a"} | dict.fromkeys(everything)) == read({"input": "a"})


def test_job_that_can_be_asked_for_again_lives_longer_than_any_client_waits() -> None:
    assert read({"input": "a"}).job.ttl_seconds == 60
    assert read({"input": "a"}, repeatable=True).job.ttl_seconds > 120


BAD = [
    ("none", {}, "input", "input must be a string, token ids, or a list of either, got none"),
    ("null", {"input": None}, "input", "got null"),
    ("empty", {"input": ""}, "input", "input is empty"),
    ("empty list", {"input": []}, "input", "input is empty, at least one text is needed"),
    ("empty text in a list", {"input": ["a", ""]}, "input[1]", "input[1] is empty"),
    ("empty ids in a list", {"input": ["a", []]}, "input[1]", "input[1] is empty"),
    ("an object", {"input": {"text": SECRET}}, "input", "got an object"),
    ("a number", {"input": 7}, "input", "got a number"),
    ("true", {"input": [True]}, "input[0]", "got a boolean"),
    ("an object in a list", {"input": [{"text": SECRET}]}, "input[0]", "must be a string or a list of token ids, got an object"),
    ("fractions", {"input": [1.5, 2]}, "input", "not of whole numbers"),
    ("texts among ids", {"input": [1, SECRET]}, "input", "not of whole numbers"),
    ("ids", {"input": [[1, 2], [3]]}, "input[0]", "TOKEN_ENCODING"),
    (
        "more ids than characters",
        {"input": [[1] * 51, "a"]},
        "input[0]",
        "has 51 token ids, the limit is 50 (MAX_INPUT_CHARACTERS)",
    ),
    (
        "too many ids together",
        {"input": [[1] * 200] * 1501},
        "input",
        "input has 300200 token ids, the limit of a request is 300000",
    ),
    ("too many", {"input": ["a"] * 2049}, "input", "input has 2049 texts, the limit is 2048"),
    ("too long", {"input": ["a", SECRET * 3]}, "input[1]", "has 54 characters, the limit is 50 (MAX_INPUT_CHARACTERS)"),
    ("unknown key", {"input": "a", "inputs": ["b"]}, "inputs", "unknown key 'inputs'; known are input, model"),
    ("encoding", {"input": "a", "encoding_format": "hex"}, "encoding_format", "must be 'float' or 'base64', got 'hex'"),
    ("dimensions", {"input": "a", "dimensions": 0}, "dimensions", "greater than or equal to 1"),
    ("user", {"input": "a", "user": 7}, "user", "valid string"),
    ("priority is ours to set", {"input": "a", "priority": "bulk"}, "priority", "unknown key 'priority'"),
    ("a list", [SECRET], None, "the body must be an object with the key input, got a list of 1"),
]


@pytest.mark.parametrize(("body", "param", "says"), [pytest.param(*row[1:], id=row[0]) for row in BAD])
def test_what_cannot_be_done_is_refused(body: Any, param: str | None, says: str) -> None:
    with pytest.raises(InvalidRequest) as found:
        read(body)
    assert says in found.value.message
    assert SECRET not in found.value.message
    assert found.value.param == param


def test_other_model_is_not_found() -> None:
    with pytest.raises(ModelNotFound, match="no model 'text-embedding-3-small'"):
        read({"input": "a", "model": "text-embedding-3-small"})


def job_of(total: int, *, failed: int = 0, errors: Sequence[InputError] = (), tokens: int = 0) -> Job:
    counts = Counts(total, total - failed, failed)
    return Job(
        "job_1", "t", JobStatus.SUCCEEDED, counts, "cpu", Lane.INTERACTIVE, "m", JobOptions(), {}, 60, 0.0, tokens=tokens,
        errors=tuple(errors),
    )  # fmt: skip


def part_of(first: int, vectors: np.ndarray, truncated: Sequence[int] = ()) -> Part:
    block = ResultBlock(vectors.shape[1], vectors.tobytes(), (3,) * len(vectors), frozenset(truncated))
    return Part(first, block, 0, len(vectors))


@pytest.mark.parametrize("shape", [(1, 3), (300, 384), (3, 100_000)])
def test_answer_is_openais_in_both_formats_and_in_pieces(shape: tuple[int, int]) -> None:
    vectors = np.random.default_rng(1).standard_normal((2 * shape[0], shape[1])).astype("<f4")
    halves = [part_of(0, vectors[: shape[0]]), part_of(shape[0], vectors[shape[0] :])]
    for embedding in (as_numbers, as_base64):
        pieces = list(write_embeddings(job_of(len(vectors), tokens=9), iter(halves), embedding))
        answer = json.loads(b"".join(pieces))
        assert list(answer) == ["object", "data", "model", "usage"]
        assert (answer["object"], answer["model"]) == ("list", "m")
        assert answer["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
        assert [list(item) for item in answer["data"]] == [["object", "index", "embedding"]] * len(vectors)
        assert [item["index"] for item in answer["data"]] == list(range(len(vectors)))
        found = [item["embedding"] for item in answer["data"]]
        if embedding is as_base64:
            found = [np.frombuffer(base64.b64decode(text), dtype="<f4") for text in found]
        assert np.array(found, dtype="<f4").tobytes() == vectors.tobytes()


def test_inputs_that_were_cut_are_told_by_their_index() -> None:
    vectors = np.ones((4, 2), dtype="<f4")
    parts = iter([part_of(0, vectors, {3, 1}), part_of(4, vectors, {0})])
    assert json.loads(b"".join(write_embeddings(job_of(8), parts, as_numbers)))["truncated"] == [1, 3, 4]


def test_first_input_that_failed_is_named() -> None:
    too_long = [InputError(n, "text_too_long", "the text has more tokens than the model's maximum of 256") for n in (5, 3)]
    error = failure(job_of(8, failed=2, errors=too_long), single=False)
    assert isinstance(error, InvalidRequest)
    assert (error.param, error.code) == ("input[3]", "context_length_exceeded")
    assert error.message.startswith("input[3] has no vector: the text has more tokens than the model's maximum of 256; 1 more")
    died = failure(job_of(1, failed=1, errors=[InputError(0, "worker_died", "the worker died 3 times")]), single=True)
    assert isinstance(died, InputFailed)
    assert (died.param, died.code, died.retryable) == ("input", "worker_died", False)
    prompt = failure(job_of(1, failed=1, errors=[InputError(0, "unknown_prompt", "no")]), single=True)
    assert isinstance(prompt, InvalidRequest)
    assert prompt.param == "prompt_name"
