"""What requests may say, and that a refusal gives no text away."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import schemas
from core.config import Settings
from core.errors import InvalidRequest, VectorApiError
from core.jobs import Counts, InputError, Job, JobOptions, JobStatus, Lane
from core.ledger import Worker
from core.models import Model
from core.sharding import Input

SETTINGS = Settings(max_inputs=4, max_stream_inputs=6, max_input_characters=20, max_ttl_seconds=500)
SECRET = "zebra quartz 4711"


def test_options_left_out_have_their_defaults() -> None:
    request = schemas.read_options({}, SETTINGS)
    assert (request.queue, request.priority, request.model, request.metadata, request.ttl_seconds) == (
        "auto",
        "bulk",
        None,
        None,
        None,
    )
    assert request.job_options == JobOptions()


def test_options_given_are_taken_as_they_are() -> None:
    sent = {
        "queue": "gpu",
        "model": SETTINGS.model_name,
        "normalize": False,
        "dimensions": 64,
        "prompt_name": "query",
        "truncate": "chunk",
        "chunk_overlap": 16,
        "priority": "interactive",
        "metadata": {"a": [1, {"b": None}]},
        "ttl_seconds": 500,
    }
    request = schemas.read_options(sent, SETTINGS)
    assert request.model_dump() == sent
    options = JobOptions(normalize=False, dimensions=64, prompt_name="query", truncate="chunk", chunk_overlap=16)
    assert request.job_options == options
    assert sorted(sent) == sorted(schemas.OPTIONS), "every option is tried here"


def test_whole_number_may_be_written_with_a_point() -> None:
    assert schemas.read_options({"dimensions": 8.0}, SETTINGS).dimensions == 8


def test_overlap_counts_with_chunks_only() -> None:
    assert schemas.read_options({"truncate": "start", "chunk_overlap": 8}, SETTINGS).job_options.chunk_overlap == 0


@pytest.mark.parametrize("name", ["model", "dimensions", "prompt_name", "metadata", "ttl_seconds"])
def test_null_is_the_same_as_left_out(name: str) -> None:
    assert schemas.read_options({name: None}, SETTINGS) == schemas.read_options({}, SETTINGS)


def test_metadata_may_have_its_limit_and_no_more() -> None:
    room = schemas.MOST_METADATA_BYTES - len(b'{"k":""}')
    schemas.read_options({"metadata": {"k": "x" * room}}, SETTINGS)
    with pytest.raises(InvalidRequest, match="limited to 16384 bytes of JSON, got 16385 bytes"):
        schemas.read_options({"metadata": {"k": "x" * (room + 1)}}, SETTINGS)
    with pytest.raises(InvalidRequest, match="got 16386 bytes"):
        schemas.read_options({"metadata": {"k": "x" * room + "ü"}}, SETTINGS)


def test_inputs_are_texts_or_objects_or_both() -> None:
    sent = ["a", {"text": "b"}, {"id": "x", "text": "c"}, {"id": None, "text": "d"}]
    assert schemas.read_inputs(sent, SETTINGS) == [Input("a"), Input("b"), Input("c", "x"), Input("d")]


def test_limits_are_inclusive() -> None:
    assert schemas.read_inputs(["x" * 20] * 4, SETTINGS) == [Input("x" * 20)] * 4
    assert schemas.read_inputs([{"id": "i" * 256, "text": "🎉" * 20}], SETTINGS)[0].id == "i" * 256
    with pytest.raises(InvalidRequest, match="5 items, the limit of a JSON request is 4"):
        schemas.read_inputs(["x"] * 5, SETTINGS)
    with pytest.raises(InvalidRequest, match=r"inputs\[0\] has 21 characters, the limit is 20"):
        schemas.read_inputs(["x" * 21], SETTINGS)


def lines_of(*values: Any) -> Iterator[tuple[int, bytes]]:
    return ((number, json.dumps(value).encode()) for number, value in enumerate(values, start=1))


def test_lines_are_read_lazily() -> None:
    """An error in a later line comes when that line is reached, not before."""
    found = schemas.read_lines(lines_of("a", {"id": "x", "text": "b"}, 7), SETTINGS)
    assert next(found) == Input("a")
    assert next(found) == Input("b", "x")
    with pytest.raises(InvalidRequest, match="line 3 must be a string or an object"):
        next(found)


def test_stream_may_have_its_limit_of_inputs_and_no_more() -> None:
    assert len(list(schemas.read_lines(lines_of(*"abcdef"), SETTINGS))) == 6
    with pytest.raises(InvalidRequest, match=r"line 7 is one too many, the limit is 6 inputs \(MAX_STREAM_INPUTS\)"):
        list(schemas.read_lines(lines_of(*"abcdefg"), SETTINGS))


SHOWN = [
    (None, "null"),
    (True, "true"),
    (7, "7"),
    (1.5, "1.5"),
    ("tpu", "'tpu'"),
    ("text-embedding-3-small", "'text-embedding-3-small'"),
    ("x" * 33, "a string of 33 characters"),
    (SECRET, "a string of 17 characters"),
    ("", "a string of 0 characters"),
    ([1, 2], "a list of 2"),
    ({SECRET: SECRET}, "an object"),
]


@pytest.mark.parametrize(("value", "words"), SHOWN)
def test_what_was_sent_is_shown_as_a_word_or_a_length(value: Any, words: str) -> None:
    assert schemas.shown(value) == words


leaves = st.none() | st.booleans() | st.integers(-5, 10**12) | st.floats(allow_nan=False, allow_infinity=False) | st.just(SECRET)
keys = st.sampled_from([*schemas.OPTIONS, "inputs", "id", "text", "other", SECRET])
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=6) | st.dictionaries(keys, inner, max_size=4), max_leaves=12)


def refusal_of(read: Callable[[], Any]) -> str:
    """What the client is told when it is refused, or nothing."""
    try:
        read()
    except VectorApiError as error:
        return f"{error.message} {error.param}"
    return ""


@given(st.dictionaries(keys, values, max_size=5))
def test_any_body_is_a_request_or_refused_without_its_texts(body: dict[str, Any]) -> None:
    def read() -> None:
        found = schemas.read_body(orjson.dumps(body))
        inputs = found.pop("inputs", schemas.MISSING)
        schemas.read_options(found, SETTINGS)
        schemas.read_inputs(inputs, SETTINGS)

    told = refusal_of(read)
    assert SECRET not in told
    assert len(told) < 500


@given(st.binary(max_size=60))
def test_any_bytes_are_json_or_refused(raw: bytes) -> None:
    assert len(refusal_of(lambda: schemas.read_body(raw))) < 200


def test_record_of_a_job_that_a_worker_has_begun() -> None:
    job = Job(
        id="j",
        tenant="t",
        status=JobStatus.RUNNING,
        counts=Counts(4, 1, 1),
        queue="gpu",
        lane=Lane.INTERACTIVE,
        model="m",
        options=JobOptions(dimensions=3),
        metadata={"a": 1},
        ttl_seconds=9,
        created_at=1.5,
        errors=(InputError(2, "code", "message"),),
    )
    record = schemas.job_record(job)
    assert (record["progress"], record["priority"], record["dimensions"]) == (0.5, "interactive", 3)
    assert "tenant" not in record
    sent = orjson.loads(orjson.dumps(record))
    assert sent["errors"] == [{"index": 2, "code": "code", "message": "message", "retryable": False}]
    assert sent["counts"] == {"total": 4, "done": 1, "failed": 1}
    assert schemas.job_record(replace(job, dimensions=2))["dimensions"] == 2
    page = schemas.job_list([job, replace(job, id="k")], True)
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("j", "k", True)
    assert "errors" not in page["data"][0]


WORKER = Worker("a@x", ("cpu.large",), "idle", "org/large", "r1", "openvino", "cpu", "bfloat16", 8, 128, ("query",), {}, 0.9999)


def test_model_is_told_with_its_workers_by_kind_and_their_worst_parity() -> None:
    workers = [
        WORKER,
        replace(WORKER, name="b@x", parity=0.9995, prompts=("passage",)),
        replace(WORKER, name="c@x", parity=None),
        replace(WORKER, name="g@x", queues=("gpu.large", "cpu.large"), device="cuda:0", engine="torch", parity=None),
    ]
    found = schemas.model_record(Model("org/large", "large", revision="main"), workers)
    assert (found["live"], found["revision"], found["prompts"]) == (True, "r1", ["passage", "query"])
    assert [(kind["device"], kind["parity"], kind["queues"], kind["count"]) for kind in found["workers"]] == [
        ("cpu", 0.9995, ["cpu"], 3),
        ("cuda:0", None, ["cpu", "gpu"], 1),
    ]


def test_model_without_workers_tells_the_revision_of_the_list_and_nothing_it_does_not_know() -> None:
    found = schemas.model_record(Model("org/large", "large", revision="main"), [])
    assert {name for name, value in found.items() if value is None} == {"dimensions", "max_tokens", "prompts"}
    assert (found["live"], found["revision"], found["workers"]) == (False, "main", [])


@pytest.mark.parametrize(
    ("name", "owner"),
    [("BAAI/bge", "BAAI"), ("/srv/models/bge", "local"), ("./bge", "local"), ("models/own/bge", "local"), ("bge", "local")],
)
def test_owner_is_the_organisation_on_the_hub(name: str, owner: str) -> None:
    assert schemas.owner_of(name) == owner


TEXTS = [
    'a "quoted" one, [with] {brackets}',
    "back\\slashes \\\\ at the end\\",
    '\\"',
    ",[{" * 30_000,
]


def test_values_are_counted_and_not_what_texts_hold() -> None:
    raw = orjson.dumps({"inputs": TEXTS})
    assert len(raw) > schemas.UNCOUNTED_BYTES
    assert schemas.parse_json(raw, most=6) == {"inputs": TEXTS}
    with pytest.raises(InvalidRequest, match="the body holds more than 5 values; larger jobs go to /v1/jobs as"):
        schemas.parse_json(raw, most=5)
    with pytest.raises(InvalidRequest, match=r"line 3 holds more than 5 values$") as found:
        schemas.parse_json(raw, 3, most=5)
    assert found.value.param == "line 3"


def test_request_of_the_most_inputs_is_never_said_to_hold_too_much() -> None:
    settings = Settings(max_inputs=20_000)
    metadata = {"k": [0] * 8000}
    body = {"inputs": [{"id": "i", "text": "t"}] * settings.max_inputs, "metadata": metadata}
    assert schemas.read_body(orjson.dumps(body), schemas.most_values(settings)) == body
    schemas.read_options({"metadata": metadata}, settings)
