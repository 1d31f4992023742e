"""OpenAI's embeddings on our jobs: read what their clients send, write what they read."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from api.results import PIECE_FLOATS, Embedding, Part
from api.schemas import (
    MISSING,
    MOST_VALUES,
    WORD,
    JobRequest,
    Text,
    explain,
    kind_of,
    parse_json,
    read_input,
    read_options,
    unknown_keys,
)
from api.token_ids import decode
from core.config import Settings
from core.errors import InputFailed, InvalidRequest, VectorApiError
from core.jobs import InputError, Job, Lane
from core.models import Model, Models
from core.sharding import Input

MOST_INPUTS = 2048
"""As with OpenAI."""

MOST_TOKEN_IDS = 300_000
"""In one request, as with OpenAI."""

JOB_OPTIONS = ("model", "dimensions", "prompt_name", "truncate", "chunk_overlap", "queue")
"""What is the same in a job; the last four are not OpenAI's."""

LIFETIME_SECONDS = 60
"""Of a job that ended and was not removed: its API died."""

REPEATABLE_SECONDS = 600
"""Of a job with an idempotency key: longer than any client waits before it tries again."""

CODES = {"text_too_long": "context_length_exceeded"}
"""Our codes of inputs that fail, where OpenAI has a word for it."""

FIELDS = {
    "text_too_long": "",
    "no_room_for_text": "",
    "unknown_prompt": "prompt_name",
    "dimensions_too_large": "dimensions",
}
"""What is the client's fault, and the field at fault; empty for the input itself."""


class EmbeddingsRequest(BaseModel):
    """The fields that a job does not have."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    encoding_format: Literal["float", "base64"] = "float"
    """`base64`: of the little-endian float32 numbers."""
    user: str | None = None
    """Taken, as clients send it, and not used."""


KNOWN = ("input", *JOB_OPTIONS, *EmbeddingsRequest.model_fields)


TokenIds = Annotated[list[int], Field(min_length=1)]
OneInput = Text | TokenIds
Inputs = Annotated[
    OneInput | Annotated[list[OneInput], Field(min_length=1, max_length=MOST_INPUTS)],
    Field(description="A text or a list of texts; or token ids, where the model's encoding of them is set."),
]


def _described() -> Any:
    """The body's type, for the description only: `read_embeddings` reads it. Any key may be null, which is to leave it out."""
    fields = {name: JobRequest.model_fields[name] for name in JOB_OPTIONS} | EmbeddingsRequest.model_fields
    kinds: dict[str, Any] = {name: (field.annotation | None, field) for name, field in fields.items()}  # type: ignore[operator]
    body = create_model("EmbeddingsBody", __config__=EmbeddingsRequest.model_config, input=(Inputs, ...), **kinds)
    body.model_config["json_schema_extra"] = {"examples": [{"input": "A cat sat on the mat."}]}
    body.model_rebuild(force=True)
    return body


EmbeddingsBody = _described()


@dataclass(frozen=True)
class Asked:
    """A request for vectors."""

    inputs: list[Input]
    job: JobRequest
    model: Model
    encoding_format: str
    single: bool
    """`input` is one text, not a list."""


def read_embeddings(raw: bytes, settings: Settings, models: Models, *, repeatable: bool) -> Asked:
    """What a body asks for. null is the same as a key that is left out: LiteLLM and others send that.

    Raises:
        InvalidRequest: no JSON, an unknown key, a wrong type, a value out of its limits.
        ModelNotFound: no such model is served.
    """
    body = parse_json(raw, most=MOST_VALUES + MOST_INPUTS + MOST_TOKEN_IDS)
    if not isinstance(body, dict):
        raise InvalidRequest(f"the body must be an object with the key input, got {kind_of(body)}")
    values = {name: value for name, value in body.items() if value is not None}
    if unknown := [name for name in body if name not in KNOWN]:
        raise InvalidRequest(unknown_keys(unknown, KNOWN), param=unknown[0] if WORD.fullmatch(unknown[0]) else None)
    try:
        own = EmbeddingsRequest.model_validate({name: values[name] for name in EmbeddingsRequest.model_fields if name in values})
    except ValidationError as error:
        raise explain(error) from None
    options = read_options({name: values[name] for name in JOB_OPTIONS if name in values}, settings)
    lifetime = REPEATABLE_SECONDS if repeatable else LIFETIME_SECONDS
    job = options.model_copy(update={"priority": Lane.INTERACTIVE.value, "ttl_seconds": lifetime})
    given = body.get("input", MISSING)
    model = models.find(options.model)
    inputs = read_input_field(given, settings, model.token_encoding)
    return Asked(inputs, job, model, own.encoding_format, single=is_single(given))


def is_single(value: Any) -> bool:
    """Whether it is one text, as a string or as token ids."""
    return isinstance(value, str) or (isinstance(value, list) and bool(value) and is_number(value[0]))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_input_field(value: Any, settings: Settings, encoding: str | None) -> list[Input]:
    """The texts of `input`: a string, token ids, or a list of up to `MOST_INPUTS` of either.

    Raises:
        InvalidRequest: anything else, an empty text, one that is too long, token ids that cannot be decoded.
    """
    _require_few_ids(value)
    if is_single(value):
        return [_read_text(value, "input", settings, encoding)]
    if not isinstance(value, list):
        found = "none" if value is MISSING else kind_of(value)
        raise InvalidRequest(f"input must be a string, token ids, or a list of either, got {found}", param="input")
    if not value:
        raise InvalidRequest("input is empty, at least one text is needed", param="input")
    most = min(MOST_INPUTS, settings.max_inputs)
    if len(value) > most:
        raise InvalidRequest(f"input has {len(value)} texts, the limit is {most}; larger jobs go to /v1/jobs", param="input")
    return [_read_text(item, f"input[{index}]", settings, encoding) for index, item in enumerate(value)]


def _require_few_ids(value: Any) -> None:
    """Raises InvalidRequest for more token ids together than a request may have."""
    lists = [value] if is_single(value) else value if isinstance(value, list) else []
    count = sum(len(item) for item in lists if isinstance(item, list))
    if count > MOST_TOKEN_IDS:
        raise InvalidRequest(f"input has {count} token ids, the limit of a request is {MOST_TOKEN_IDS}", param="input")


def _read_text(value: Any, name: str, settings: Settings, encoding: str | None) -> Input:
    if isinstance(value, list) and value:
        if not all(type(number) is int for number in value):
            raise InvalidRequest(f"{name} is a list, but not of whole numbers: token ids were expected", param=name)
        if len(value) > settings.max_input_characters:
            limit = f"the limit is {settings.max_input_characters} (MAX_INPUT_CHARACTERS)"
            raise InvalidRequest(f"{name} has {len(value)} token ids, {limit}", param=name)
        value = decode(encoding, value, name)
    elif not isinstance(value, str | list):
        raise InvalidRequest(f"{name} must be a string or a list of token ids, got {kind_of(value)}", param=name)
    return read_input(value or "", 0, lambda _number, _field: name, settings.max_input_characters)


# Answers --------------------------------------------------------------------------------------------------------------


def failure(job: Job, *, single: bool) -> VectorApiError:
    """Why the job's request fails: what befell the first input of those that failed and are known."""
    error = min(job.errors, key=lambda found: found.index)
    name = "input" if single else f"input[{error.index}]"
    others = f"; {job.counts.failed - 1} more of them failed" if job.counts.failed > 1 else ""
    message = f"{name} has no vector: {error.message}{others}"
    code = CODES.get(error.code, error.code)
    if error.code in FIELDS:
        return InvalidRequest(message + _advice(error), param=FIELDS[error.code] or name, code=code)
    return InputFailed(message, param=name, code=code, retryable=error.retryable)


def _advice(error: InputError) -> str:
    advice = '; send "truncate": "end" to have texts cut, or "chunk" to have all of them embedded'
    return advice if error.code == "text_too_long" else ""


def write_embeddings(job: Job, parts: Iterator[Part], embedding: Embedding) -> Iterator[bytes]:
    """OpenAI's answer. `truncated` lists the inputs that were cut; without any it is left out, and nothing is not OpenAI's."""
    between, truncated = b'{"object":"list","data":[', list[int]()
    for part in parts:
        truncated += [part.first + position for position in sorted(part.block.truncated)]
        vectors = np.frombuffer(part.block.vectors, dtype="<f4").reshape(-1, part.block.dimensions)
        step = max(1, PIECE_FLOATS // part.block.dimensions)
        for start in range(0, len(vectors), step):
            items = [
                {"object": "embedding", "index": part.first + n, "embedding": embedding(vectors[n])}
                for n in range(start, min(start + step, len(vectors)))
            ]
            yield between + orjson.dumps(items, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
            between = b","
    tail: dict[str, Any] = {"model": job.model, "usage": {"prompt_tokens": job.tokens, "total_tokens": job.tokens}}
    if truncated:
        tail["truncated"] = truncated
    yield b"]," + orjson.dumps(tail)[1:]
