"""Read what a batch is made of: the request, and its file line by line, as a stream.

Every line is checked before anything of the batch runs. Errors name the line and the field by the codes that OpenAI uses, and
never show a text.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from api.bodies import lines
from api.schemas import JobRequest, kind_of, parse_json, read_options, shown, unknown_keys
from api.submission import require_known
from core.config import Settings
from core.errors import InvalidRequest
from core.ledger import LineBlock, Worker
from core.models import Model, Models
from core.sharding import Input

ENDPOINT = "/v1/embeddings"
MOST_CUSTOM_ID_CHARACTERS = 512
MOST_INPUTS_OF_LINE = 2048
MOST_ERRORS = 100
"""Lines at fault that are told; reading stops there."""

LINES_IN_BLOCK = 1024

MOST_METADATA, MOST_METADATA_KEY, MOST_METADATA_VALUE = 16, 64, 512
WINDOW = re.compile(r"([1-9][0-9]{0,2})([hd])")
WINDOW_PATTERN = r"^([1-7]d|([1-9]|[1-9][0-9]|1[0-5][0-9]|16[0-8])h)$"
"""The same for the description, with the limits below."""
LONGEST_WINDOW_SECONDS = 7 * 86_400
LEAST_TTL_SECONDS = 3600

TOKENS = "holds token ids, which are those of the client's tokenizer; send texts (LangChain: check_embedding_ctx_length=False)"


class ExpiresAfter(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=LEAST_TTL_SECONDS)]


class BatchRequest(BaseModel):
    """The body of `POST /v1/batches`; `queue` is ours."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        json_schema_extra={
            "examples": [{"input_file_id": "file-6a1e", "endpoint": "/v1/embeddings", "completion_window": "24h"}],
        },
    )

    input_file_id: Annotated[str, Field(min_length=1, max_length=128)]
    endpoint: Literal["/v1/embeddings"]
    completion_window: Annotated[str, Field(json_schema_extra={"pattern": WINDOW_PATTERN})]
    metadata: Annotated[dict[str, str] | None, Field(json_schema_extra={"maxProperties": MOST_METADATA})] = None
    output_expires_after: ExpiresAfter | None = None
    queue: Literal["auto", "cpu", "gpu"] = "auto"

    @property
    def window_seconds(self) -> int:
        found = WINDOW.fullmatch(self.completion_window)
        return int(found[1]) * {"h": 3600, "d": 86_400}[found[2]] if found else 0


AGREED = ("dimensions", "prompt_name", "truncate", "chunk_overlap")
"""Options that are the same on all lines."""


class LineBody(BaseModel):
    """The body of a line, but for its input."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: Annotated[str, Field(min_length=1, max_length=512)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    prompt_name: str | None = None
    truncate: str = "end"
    chunk_overlap: int | None = None
    user: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What all lines must agree in, but for the model, as a job takes it."""
        return {name: value for name in AGREED if (value := getattr(self, name)) is not None}


def read_batch(values: dict[str, Any], settings: Settings) -> BatchRequest:
    """The request for a batch.

    Raises:
        InvalidRequest: an unknown key, a wrong type, a value out of its limits.
    """
    try:
        found = BatchRequest.model_validate(values)
    except ValidationError as error:
        problem = _explain(error, "", tuple(BatchRequest.model_fields))
        raise InvalidRequest(problem.message, param=problem.param) from None
    if not 3600 <= found.window_seconds <= LONGEST_WINDOW_SECONDS:
        limits = "a number of hours or days from '1h' to '7d', such as '24h'"
        raise InvalidRequest(
            f"completion_window must be {limits}, got {shown(found.completion_window)}", param="completion_window"
        )
    after = found.output_expires_after
    if after is not None and after.seconds > settings.max_ttl_seconds:
        limit = f"at most {settings.max_ttl_seconds} (MAX_TTL_SECONDS)"
        raise InvalidRequest(
            f"output_expires_after.seconds must be {limit}, got {after.seconds}", param="output_expires_after.seconds"
        )
    _check_metadata(found.metadata or {})
    return found


def _check_metadata(metadata: dict[str, str]) -> None:
    problem = None
    if len(metadata) > MOST_METADATA:
        problem = f"{MOST_METADATA} pairs, got {len(metadata)}"
    elif longest := max((len(key) for key in metadata if len(key) > MOST_METADATA_KEY), default=0):
        problem = f"keys of {MOST_METADATA_KEY} characters, got one of {longest}"
    elif longest := max((len(value) for value in metadata.values() if len(value) > MOST_METADATA_VALUE), default=0):
        problem = f"values of {MOST_METADATA_VALUE} characters, got one of {longest}"
    if problem:
        raise InvalidRequest(f"metadata is limited to {problem}", param="metadata")


@dataclass(frozen=True)
class LineError:
    """What is wrong with a line, as a failed batch tells it."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchRejected(Exception):
    """The file cannot be embedded; nothing of it runs."""

    def __init__(self, errors: Sequence[LineError]) -> None:
        super().__init__(errors)
        self.errors = errors


class _Wrong(Exception):
    """A line is wrong."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


class LineReader:
    """The lines of a batch's file, read once. Afterwards `request`, `model`, `lines` and `blocks` tell what they were.

    Args:
        workers_of: the live workers of a model.
        asked: the request for the batch.
        store: keeps a block of lines, with its number.
    """

    def __init__(
        self,
        settings: Settings,
        models: Models,
        workers_of: Callable[[Model], Sequence[Worker]],
        asked: BatchRequest,
        store: Callable[[int, LineBlock], None],
    ) -> None:
        self._settings = settings
        self._models = models
        self._workers_of = workers_of
        self._fixed: dict[str, Any] = {"queue": asked.queue, "metadata": asked.metadata or {}}
        if asked.output_expires_after is not None:
            self._fixed["ttl_seconds"] = asked.output_expires_after.seconds
        self._store = store
        self._known: set[bytes] = set()
        self._first: LineBody | None = None
        self._errors: list[LineError] = []
        self._held: list[tuple[str, int, bool]] = []
        self.request: JobRequest | None = None
        self.model: Model | None = None
        self.lines = 0
        self.inputs = 0
        self.blocks = 0

    def read(self, pieces: Iterable[bytes]) -> Iterator[Input]:
        """The inputs of all lines, in order. None comes any more once a line was wrong.

        Raises:
            BatchRejected: at the end, when a line was wrong or there is none.
        """
        try:
            for number, line in lines(pieces, limit_bytes=self._settings.max_body_bytes):
                found = self._try(number, line)
                if len(self._errors) >= MOST_ERRORS:
                    break
                if not self._errors:
                    for text in found:
                        yield Input(text)
        except InvalidRequest as error:  # a line without an end
            self._errors.append(LineError("invalid_request", error.message))
        except _Wrong as error:
            self._errors.append(LineError(error.code, error.message))
        if not self.lines and not self._errors:
            self._errors.append(LineError("empty_file", "the file has no line"))
        if self._errors:
            raise BatchRejected(self._errors)
        self._end_block()

    def _try(self, number: int, line: bytes) -> list[str]:
        """The texts of a line; none when it is wrong, which is noted."""
        if self.lines == self._settings.max_batch_inputs:
            limit = f"{self._settings.max_batch_inputs} (MAX_BATCH_INPUTS)"
            raise _Wrong("too_many_tasks", f"the file has more lines than the limit of {limit}")
        self.lines += 1
        try:
            return self._read(line)
        except _Wrong as error:
            self._errors.append(LineError(error.code, error.message, error.param, number))
            return []

    def _read(self, line: bytes) -> list[str]:
        values = _object(line)
        custom_id = self._custom_id(values)
        _require(values, "method", "POST", "invalid_request")
        _require(values, "url", ENDPOINT, "url_mismatch")
        body = _present(values, "body")
        if not isinstance(body, dict):
            raise _Wrong("invalid_request", f"body must be an object, got {kind_of(body)}", "body")
        texts = self._texts(_present(body, "input", "body."))
        found = _line_body({name: value for name, value in body.items() if name != "input"})
        self._agree(found)
        if self.inputs + len(texts) > self._settings.max_batch_inputs:
            limit = f"{self._settings.max_batch_inputs} (MAX_BATCH_INPUTS)"
            raise _Wrong("too_many_tasks", f"with this line the batch has more inputs than the limit of {limit}", "body.input")
        self._held.append((custom_id, len(texts), found.encoding_format == "base64"))
        self.inputs += len(texts)
        if len(self._held) == LINES_IN_BLOCK:
            self._end_block()
        return texts

    def _end_block(self) -> None:
        if not self._held or self._errors:
            return
        ids, counts, base64 = zip(*self._held, strict=True)
        self._store(self.blocks, LineBlock(self.inputs - sum(counts), ids, counts, base64))
        self.blocks += 1
        self._held = []

    def _custom_id(self, values: dict[str, Any]) -> str:
        custom_id = _present(values, "custom_id")
        if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MOST_CUSTOM_ID_CHARACTERS:
            limit = f"a string of 1 to {MOST_CUSTOM_ID_CHARACTERS} characters"
            raise _Wrong("invalid_request", f"custom_id must be {limit}, got {kind_of(custom_id)}", "custom_id")
        digest = hashlib.blake2b(custom_id.encode(), digest_size=16).digest()
        if digest in self._known:
            raise _Wrong("duplicate_custom_id", "custom_id was used by an earlier line", "custom_id")
        self._known.add(digest)
        return custom_id

    def _texts(self, value: Any) -> list[str]:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list):
            found = f"a string or a list of strings, got {kind_of(value)}"
            raise _Wrong("invalid_request", f"body.input must be {found}", "body.input")
        if not 0 < len(texts) <= MOST_INPUTS_OF_LINE:
            raise _Wrong(
                "invalid_request", f"body.input must have 1 to {MOST_INPUTS_OF_LINE} items, got {len(texts)}", "body.input"
            )
        for index, text in enumerate(texts):
            if not isinstance(text, str) or not 0 < len(text) <= self._settings.max_input_characters:
                name = "body.input" if isinstance(value, str) else f"body.input[{index}]"
                raise _Wrong("invalid_request", f"{name} {self._problem(text)}", name)
        return texts

    def _problem(self, text: Any) -> str:
        if isinstance(text, int | list) and not isinstance(text, bool):
            return TOKENS
        if not isinstance(text, str):
            return f"must be a string, got {kind_of(text)}"
        if not text:
            return "is empty"
        return f"has {len(text)} characters, the limit is {self._settings.max_input_characters} (MAX_INPUT_CHARACTERS)"

    def _agree(self, body: LineBody) -> None:
        """All lines are one job, which has one set of options: that of the first line that is right."""
        first = self._first
        if first is None:
            try:
                self.request = read_options({"model": body.model} | body.options | self._fixed, self._settings)
                self.model = self._models.find(body.model)
                require_known(self.request, self._workers_of(self.model))
            except InvalidRequest as error:
                param = "body" if error.param is None else f"body.{error.param}"
                raise _Wrong(error.code, error.message, param) from None
            self._first = body
            return
        if body.model != first.model:
            raise _Wrong("model_mismatch", "body.model is another one than that of the lines before", "body.model")
        for name in AGREED:
            if getattr(body, name) != getattr(first, name):
                message = f"body.{name} must be the same on all lines of a batch; send another batch for another one"
                raise _Wrong("invalid_request", message, f"body.{name}")


def _object(line: bytes) -> dict[str, Any]:
    try:
        values = parse_json(line, 1)
    except InvalidRequest as error:
        raise _Wrong("invalid_json_line", error.message.removeprefix("line 1 ")) from None
    if not isinstance(values, dict):
        raise _Wrong("invalid_json_line", f"must be an object, got {kind_of(values)}")
    return values


def _present(values: dict[str, Any], name: str, where: str = "") -> Any:
    if values.get(name) is None:
        raise _Wrong("missing_required_parameter", f"{where}{name} is missing", where + name)
    return values[name]


def _require(values: dict[str, Any], name: str, wanted: str, code: str) -> None:
    if _present(values, name) != wanted:
        raise _Wrong(code, f"{name} must be {wanted}, got {shown(values[name])}", name)


def _line_body(values: dict[str, Any]) -> LineBody:
    try:
        return LineBody.model_validate(values)
    except ValidationError as error:
        raise _explain(error, "body.", ("input", *LineBody.model_fields)) from None


def _explain(error: ValidationError, where: str, known: tuple[str, ...]) -> _Wrong:
    """One message for the first thing that is wrong; all unknown keys count as one."""
    details = error.errors(include_url=False, include_context=False)
    unknown = [str(detail["loc"][-1]) for detail in details if detail["type"] == "extra_forbidden"]
    if unknown:
        return _Wrong("invalid_request", f"{where.rstrip('.') or 'the body'} has the {unknown_keys(unknown, known)}")
    first: ErrorDetails = details[0]
    path = where + ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return _Wrong("missing_required_parameter", f"{path} is missing", path)
    problem = first["msg"].replace("Input should", "must").replace("String should", "must")
    return _Wrong("invalid_request", f"{path} {problem}, got {shown(first['input'])}", path)
