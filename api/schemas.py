"""What requests may say and what answers look like.

Errors name the field by its path, its limit, and what was sent: its type, its length, or a short word. Never a text to embed.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Final, Literal, NotRequired

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, with_config
from pydantic_core import ErrorDetails
from typing_extensions import TypedDict

from api.dry_run import figures
from api.openapi import limited
from api.records import JobList, JobRecord, ModelRecord, QueueRecord, WorkerKind, WorkerRecord
from core.config import Settings
from core.errors import InvalidRequest
from core.jobs import Job, JobOptions
from core.ledger import QueueState, Worker
from core.models import Model
from core.routing import base_of
from core.sharding import Input

MOST_ID_CHARACTERS = 256
MOST_METADATA_BYTES = 16_384
INPUT_KEYS = ("id", "text")
MISSING: Final = object()
"""Stands for inputs that were not sent."""

UNCOUNTED_BYTES = 65_536
"""A JSON text up to this size is parsed as it is: whatever is in it takes some 2 MB."""

MOST_VALUES = MOST_METADATA_BYTES + 4096
"""Values in a JSON text with few of them: a line with its inputs, or a body with nothing large but metadata."""

WORD = re.compile(r"[\w.:/+-]{1,32}")
"""What may be shown of a string that was sent: a word such as a mistyped option, not a text."""


MOST_EXACT = 2.0**53
"""Beyond it a number with a point may stand for several whole ones."""


def _without_point(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= MOST_EXACT else value


WHOLE = BeforeValidator(_without_point)
"""JSON knows no integers apart: 8.0 is one, says its schema."""


class JobRequest(BaseModel):
    """The options of a new job: everything but its inputs."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    queue: Literal["auto", "cpu", "gpu"] = "auto"
    """`auto` is gpu while a gpu worker lives, as far as `GPU_SHARE` allows, else cpu."""
    model: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """One of the models that are served, by its name or alias; that of `MODEL_NAME` when left out."""
    normalize: bool = True
    """Scale vectors to length 1."""
    dimensions: Annotated[int, Field(ge=1, le=65_536), WHOLE] | None = None
    """Keep the first so many numbers of each vector."""
    prompt_name: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Put a prompt of the model's configuration in front of each text."""
    truncate: Literal["end", "start", "error", "chunk"] = "end"
    """What happens to a text beyond the model's maximum: its end or its start is cut off, it fails, or it is embedded in chunks,
    the weighted mean of whose vectors is its own."""
    chunk_overlap: Annotated[int, Field(ge=0, le=65_536), WHOLE] | None = None
    """With `truncate` as `chunk`: how many tokens at the end of a chunk come again at the start of the next."""
    priority: Literal["bulk", "interactive"] = "bulk"
    """`interactive` goes before bulk work, at every batch."""
    metadata: dict[str, Any] | None = None
    """An object of yours, shown with the job: up to 16384 bytes of JSON."""
    ttl_seconds: Annotated[int, Field(ge=1, json_schema_extra=limited(maximum="max_ttl_seconds")), WHOLE] | None = None
    """How long the job is kept after it ended."""

    @property
    def job_options(self) -> JobOptions:
        overlap = (self.chunk_overlap or 0) if self.truncate == "chunk" else 0
        return JobOptions(self.normalize, self.dimensions, self.prompt_name, self.truncate, overlap)


JobId = Annotated[str, Field(description="The job's id.", examples=["job_c3e303a839e14cb78d54cbb9bcd2d3d1"])]

OPTIONS = tuple(JobRequest.model_fields)

Text = Annotated[str, Field(min_length=1, json_schema_extra=limited(maxLength="max_input_characters"))]


@with_config(ConfigDict(extra="forbid"))
class TextWithId(TypedDict):
    text: Text
    id: NotRequired[Annotated[str, Field(max_length=MOST_ID_CHARACTERS)] | None]


class JobBody(JobRequest):
    # Only for the description: `read_inputs` reads the inputs, many times faster than pydantic.
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"inputs": ["A cat sat on the mat."]},
                {
                    "inputs": [{"id": "b-17", "text": "Rain is forecast."}],
                    "priority": "interactive",
                    "metadata": {"source": "docs"},
                },
            ]
        }
    )

    inputs: Annotated[list[Text | TextWithId], Field(min_length=1, json_schema_extra=limited(maxItems="max_inputs"))]


Lines = Annotated[
    list[Text | TextWithId],
    Field(
        min_length=1,
        json_schema_extra=limited(maxItems="max_stream_inputs"),
        description="One input a line.",
        examples=[["one text", {"id": "2", "text": "another"}]],
    ),
]
"""Likewise."""


def read_options(values: dict[str, Any], settings: Settings) -> JobRequest:
    """The options of a job from a JSON body or a query string.

    Raises:
        InvalidRequest: an unknown key, a wrong type, a value out of its limits.
    """
    try:
        request = JobRequest.model_validate(values)
    except ValidationError as error:
        raise explain(error) from None
    if request.ttl_seconds is not None and request.ttl_seconds > settings.max_ttl_seconds:
        limit = f"at most {settings.max_ttl_seconds} (MAX_TTL_SECONDS)"
        raise InvalidRequest(f"ttl_seconds must be {limit}, got {request.ttl_seconds}", param="ttl_seconds")
    if request.metadata is not None:
        _check_metadata(request.metadata)
    return request


def _check_metadata(metadata: dict[str, Any]) -> None:
    try:
        size_bytes = len(orjson.dumps(metadata))
    except TypeError:
        raise InvalidRequest("metadata is nested too deeply", param="metadata") from None
    if size_bytes > MOST_METADATA_BYTES:
        limit = f"{MOST_METADATA_BYTES} bytes of JSON"
        raise InvalidRequest(f"metadata is limited to {limit}, got {size_bytes} bytes", param="metadata")


def explain(error: ValidationError) -> InvalidRequest:
    """One message for the first thing that is wrong; all unknown keys count as one."""
    details = error.errors(include_url=False, include_context=False)
    unknown = [str(detail["loc"][-1]) for detail in details if detail["type"] == "extra_forbidden"]
    if unknown:
        return InvalidRequest(
            unknown_keys(unknown, ("inputs", *OPTIONS)), param=unknown[0] if WORD.fullmatch(unknown[0]) else None
        )
    first: ErrorDetails = details[0]
    path = ".".join(str(part) for part in first["loc"])
    problem = first["msg"].replace("Input should", "must").replace("String should", "must")
    return InvalidRequest(f"{path} {problem}, got {shown(first['input'])}", param=path)


def unknown_keys(unknown: list[str], known: tuple[str, ...]) -> str:
    names = ", ".join(key_name(name) for name in unknown[:5]) + (" and more" if len(unknown) > 5 else "")
    return f"unknown {'keys' if len(unknown) > 1 else 'key'} {names}; known are {', '.join(known)}"


def key_name(key: str) -> str:
    """A key as a message may show it; one that is no word may be a text in the wrong place."""
    return repr(key) if WORD.fullmatch(key) else f"of {len(key)} characters"


def shown(value: Any) -> str:
    """What was sent, in words that give away no text."""
    if isinstance(value, str):
        return repr(value) if WORD.fullmatch(value) else f"a string of {len(value)} characters"
    return kind_of(value) if value is None or isinstance(value, list | dict) else orjson.dumps(value).decode()


def kind_of(value: Any) -> str:
    """The JSON type of a value, with its length where it has one."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return f"a string of {len(value)} characters"
        case list():
            return f"a list of {len(value)}"
        case _:
            return "an object"


# Inputs ---------------------------------------------------------------------------------------------------------------

Place = Callable[[int, str], str]
"""The name of an input by its number, or of a field of it."""


def in_list(index: int, field: str) -> str:
    return f"inputs[{index}]" + (f".{field}" if field else "")


def on_line(number: int, field: str) -> str:
    return f"line {number}" + (f": {field}" if field else "")


def most_values(settings: Settings) -> int:
    """More values than any JSON request for a job holds that could be accepted: an input is an object of two at most."""
    return MOST_VALUES + 4 * settings.max_inputs


def read_body(raw: bytes, most: int = MOST_VALUES) -> dict[str, Any]:
    """The object that a JSON body of up to `most` values holds.

    Raises:
        InvalidRequest: it is no JSON, or no object.
    """
    body = parse_json(raw, most=most)
    if not isinstance(body, dict):
        raise InvalidRequest(f"the body must be an object with the key inputs, got {kind_of(body)}")
    return body


def parse_json(raw: bytes, line: int | None = None, *, most: int = MOST_VALUES) -> Any:
    """The JSON value of a body, or of one line of it.

    Raises:
        InvalidRequest: it is none, also for a lone surrogate, which is no character; or it holds more than `most` values. These
            take up to thirty times their bytes, so that is found before it is parsed.
    """
    if len(raw) > UNCOUNTED_BYTES and _has_more(raw, most):
        name = "the body" if line is None else f"line {line}"
        hint = "; larger jobs go to /v1/jobs as application/x-ndjson, one input a line" if line is None else ""
        raise InvalidRequest(f"{name} holds more than {most} values{hint}", param=None if line is None else name)
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        name = "the body" if line is None else f"line {line}"
        where = f"line {error.lineno} column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        hint = " (a lone surrogate is no character)" if "surrogate" in error.msg else ""
        problem = f"is not valid JSON at {where}: {error.msg}{hint}" if raw.strip() else "is empty, JSON is expected"
        raise InvalidRequest(f"{name} {problem}", param=None if line is None else name) from None


def _has_more(raw: bytes, most: int) -> bool:
    """Whether a JSON text holds more than `most` values, without making any. What is no JSON may be counted wrongly."""
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") < most:
        return False
    bare = raw.replace(b"\\\\", b"").replace(b'\\"', b"")  # with the quotes only that open and close strings
    if bare.count(b'"') > 4 * most:  # two of each value, and two of its key
        return True
    outside = b"".join(bare.split(b'"')[::2])
    return outside.count(b",") + outside.count(b"[") + outside.count(b"{") >= most


def read_inputs(value: Any, settings: Settings) -> list[Input]:
    """The inputs of a JSON request.

    Raises:
        InvalidRequest: no list, an empty one, too many, or an input that cannot be embedded.
    """
    if not isinstance(value, list):
        found = "none" if value is MISSING else kind_of(value)
        raise InvalidRequest(f"inputs must be a list of strings or of objects {{id, text}}, got {found}", param="inputs")
    if not value:
        raise InvalidRequest("inputs is empty, at least one is needed", param="inputs")
    if len(value) > settings.max_inputs:
        message = (
            f"inputs has {len(value)} items, the limit of a JSON request is {settings.max_inputs} (MAX_INPUTS); "
            "send larger jobs as application/x-ndjson, one input a line"
        )
        raise InvalidRequest(message, param="inputs")
    return [read_input(item, index, in_list, settings.max_input_characters) for index, item in enumerate(value)]


def read_lines(lines: Iterator[tuple[int, bytes]], settings: Settings) -> Iterator[Input]:
    """The inputs of an NDJSON request, as they come.

    Raises:
        InvalidRequest: a line is no JSON or no input, or there are too many.
    """
    for count, (number, line) in enumerate(lines, start=1):
        if count > settings.max_stream_inputs:
            limit = f"{settings.max_stream_inputs} inputs (MAX_STREAM_INPUTS)"
            raise InvalidRequest(f"line {number} is one too many, the limit is {limit}", param="inputs")
        yield read_input(parse_json(line, number), number, on_line, settings.max_input_characters)


def read_input(value: Any, number: int, place: Place, most_characters: int) -> Input:
    """One input: a text, or an object of a text and its id.

    Raises:
        InvalidRequest: anything else, an empty text, or one of more than `most_characters`.
    """
    if isinstance(value, str):
        text, input_id, name = value, None, ""
    else:
        text, input_id = _read_object(value, number, place)
        name = "text"
    if not text:
        raise _bad_input(place, number, name, "is empty")
    if len(text) > most_characters:
        limit = f"the limit is {most_characters} (MAX_INPUT_CHARACTERS)"
        raise _bad_input(place, number, name, f"has {len(text)} characters, {limit}")
    return Input(text, input_id)


def _read_object(value: Any, number: int, place: Place) -> tuple[str, str | None]:
    if not isinstance(value, dict):
        raise _bad_input(place, number, "", f"must be a string or an object {{id, text}}, got {kind_of(value)}")
    unknown = [key for key in value if key not in INPUT_KEYS]
    if unknown:
        raise _bad_input(place, number, "", f"has the {unknown_keys(unknown, INPUT_KEYS)}")
    text, input_id = value.get("text"), value.get("id")
    if not isinstance(text, str):
        found = kind_of(text) if "text" in value else "none"
        raise _bad_input(place, number, "text", f"must be a string, got {found}")
    if input_id is not None and not (isinstance(input_id, str) and len(input_id) <= MOST_ID_CHARACTERS):
        limit = f"a string of at most {MOST_ID_CHARACTERS} characters"
        raise _bad_input(place, number, "id", f"must be {limit}, got {kind_of(input_id)}")
    return text, input_id


def _bad_input(place: Place, number: int, field: str, problem: str) -> InvalidRequest:
    param = on_line(number, "") if place is on_line else place(number, field)
    return InvalidRequest(f"{place(number, field)} {problem}", param=param)


# Answers --------------------------------------------------------------------------------------------------------------


def job_record(
    job: Job, *, with_errors: bool = True, waiting_for: str | None = None, queue: QueueState | None = None
) -> JobRecord:
    """A job as its client sees it.

    Args:
        waiting_for: what is missing for one that nobody works on.
        queue: where it waits, for what a dry run says of time.
    """
    record: JobRecord = {
        "id": job.id,
        "object": "job",
        "status": job.status,
        "counts": job.counts,
        "progress": job.progress,
        "queue": base_of(job.queue),
        "priority": job.lane,
        "model": job.model,
        "revision": job.revision,
        "device": job.device,
        "engine": job.engine,
        "dtype": job.dtype,
        "parity": job.parity,
        "dimensions": job.dimensions if job.dimensions is not None else job.options.dimensions,
        "normalize": job.options.normalize,
        "prompt_name": job.options.prompt_name,
        "truncate": job.options.truncate,
        "tokens": job.tokens,
        "truncated": job.truncated,
        "cached": job.cached,
        "metadata": job.metadata,
        "ttl_seconds": job.ttl_seconds,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
        "expires_at": job.expires_at,
        "links": {"self": f"/v1/jobs/{job.id}", "result": f"/v1/jobs/{job.id}/result"},
    }
    if job.options.truncate == "chunk":
        record["chunk_overlap"] = job.options.chunk_overlap
    if job.options.dry_run:
        record["dry_run"] = figures(job, queue)
        del record["links"]["result"]
    if with_errors:
        record |= {"waiting_for": waiting_for, "errors": job.errors}
    return record


def job_list(jobs: list[Job], has_more: bool) -> JobList:
    """A page of jobs. Their errors are in each job's own record."""
    return {
        "object": "list",
        "data": [job_record(job, with_errors=False) for job in jobs],
        "first_id": jobs[0].id if jobs else None,
        "last_id": jobs[-1].id if jobs else None,
        "has_more": has_more,
    }


def queue_record(state: QueueState, model: Model, *, auto_share: float, auto_share_reason: str) -> QueueRecord:
    """One queue, counted in inputs.

    `backlog` and `oldest_seconds` are always numbers: autoscalers read them.
    """
    return {
        "name": state.name,
        "object": "queue",
        "queue": base_of(state.name),
        "model": model.name,
        "auto_share": auto_share,
        "auto_share_reason": auto_share_reason,
        "stalled": state.stalled,
        "waiting": state.waiting,
        "running": state.running,
        "backlog": state.backlog,
        "suspects": state.suspects,
        "oldest_seconds": state.oldest_seconds or 0.0,
        "workers": [worker_record(worker) for worker in state.workers],
    }


def worker_record(worker: Worker) -> WorkerRecord:
    """What a worker reports about itself."""
    return {
        "name": worker.name,
        "queues": worker.queues,
        "state": worker.state,
        "model": worker.model,
        "revision": worker.revision,
        "engine": worker.engine,
        "device": worker.device,
        "device_name": worker.device_name or None,
        "dtype": worker.dtype,
        "dimensions": worker.dimensions,
        "max_tokens": worker.max_tokens,
        "prompts": worker.prompts,
        "parity": worker.parity,
        "inputs_per_second": worker.facts.get("inputs_per_second"),
        "resident_bytes": worker.facts.get("resident_bytes"),
        "memory_used_bytes": worker.facts.get("memory_used_bytes"),
        "memory_limit_bytes": worker.facts.get("memory_limit_bytes"),
        "allocated_bytes": worker.facts.get("allocated_bytes"),
        "reserved_bytes": worker.facts.get("reserved_bytes"),
        "used_bytes": worker.facts.get("used_bytes"),
        "total_bytes": worker.facts.get("total_bytes"),
        "utilization_ratio": worker.facts.get("utilization_ratio"),
        "temperature_celsius": worker.facts.get("temperature_celsius"),
        "power_watts": worker.facts.get("power_watts"),
        "facts": worker.facts,
        "seen_at": worker.seen_at,
        "silent": worker.silent,
    }


def model_record(model: Model, workers: Sequence[Worker]) -> ModelRecord:
    """A model in OpenAI's shape, and what its live workers say of it; null is what none of them has said.

    `created` is 0: no one knows when a model was made.
    """
    ready = [worker for worker in workers if worker.dimensions > 0]
    return {
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": owner_of(model.name),
        "alias": model.alias,
        "default": model.default,
        "live": bool(workers),
        "revision": ready[0].revision if ready else model.revision,
        "dimensions": ready[0].dimensions if ready else None,
        "max_tokens": ready[0].max_tokens if ready else None,
        "prompts": sorted({name for worker in ready for name in worker.prompts}) if ready else None,
        "workers": _worker_kinds(ready),
    }


def owner_of(name: str) -> str:
    """Whose model it is, by its name on the hub; `local` for a folder."""
    owner, slash, rest = name.partition("/")
    return owner if slash and rest and "/" not in rest and owner not in ("", ".", "..", "~") else "local"


def _worker_kinds(workers: Sequence[Worker]) -> list[WorkerKind]:
    """Live workers that compute alike count as one kind; its parity is the worst of theirs."""
    kinds: dict[tuple[Any, ...], list[Worker]] = {}
    for worker in workers:
        kinds.setdefault((worker.device, worker.engine, worker.dtype, worker.revision), []).append(worker)
    return [
        {
            "device": device,
            "engine": engine,
            "dtype": dtype,
            "revision": revision,
            "parity": min((worker.parity for worker in alike if worker.parity is not None), default=None),
            "queues": sorted({base_of(queue) for worker in alike for queue in worker.queues}),
            "count": len(alike),
        }
        for (device, engine, dtype, revision), alike in kinds.items()
    ]
