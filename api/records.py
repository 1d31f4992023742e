"""The shapes of answers: `api.schemas` makes them, `api.openapi` describes them by the docstrings here."""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict  # pydantic cannot read typing's own before Python 3.12

from core.jobs import Counts, InputError, JobStatus, Lane
from core.ledger import State

documented = with_config(ConfigDict(use_attribute_docstrings=True))


class ErrorFields(TypedDict):
    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str


@documented
class ErrorAnswer(TypedDict):
    """The body of every answer that is not a success."""

    error: ErrorFields
    """What is wrong, in words and as a `code`; `param` names the field, query parameter, header or line at fault."""


class JobLinks(TypedDict):
    self: str
    result: NotRequired[str]


@documented
class DryRun(TypedDict):
    """What a job would be, as far as its texts are counted. Null is what nobody knows."""

    inputs: int
    tokens: int
    """That would be embedded, special tokens and prompts included."""
    over_long: int
    """Texts beyond the model's maximum. `truncate` says what would become of them."""
    duplicates: int | None
    """Texts that stand in the job before. Null for more than 2,000,000 inputs."""
    cached: int
    """Texts whose vectors the cache has."""
    bytes: int | None
    """Of the vectors, as float32."""
    seconds: float | None
    """To embed them, at the speed that the queue's workers have measured of late, with nothing else to do."""
    backlog_seconds: float | None
    """Until what waits before them is embedded."""


@documented
class JobRecord(TypedDict):
    """A job as its client sees it. Times are Unix seconds; null is what is not known yet."""

    id: str
    object: Literal["job"]
    status: JobStatus
    counts: Counts
    progress: float
    """Share of the inputs that have ended, 0 to 1."""
    queue: str
    priority: Lane
    model: str
    revision: str | None
    device: str | None
    engine: str | None
    dtype: str | None
    parity: float | None
    """Worst cosine against float32 torch that any worker of the job has measured at its start."""
    dimensions: int | None
    normalize: bool
    prompt_name: str | None
    truncate: str
    chunk_overlap: NotRequired[int]
    """Only with `truncate` as `chunk`."""
    tokens: int
    truncated: int
    """Inputs that were longer than the model's maximum, and were cut."""
    cached: int
    """Inputs whose vectors were computed before (`CACHE_BYTES`). Their tokens are counted in `tokens`."""
    metadata: dict[str, Any]
    ttl_seconds: int
    created_at: float
    started_at: float | None
    ended_at: float | None
    expires_at: float | None
    """When the job and its result are removed."""
    waiting_for: NotRequired[str | None]
    """What is missing for a job that nobody works on. Not in lists of jobs."""
    errors: NotRequired[tuple[InputError, ...]]
    """Why inputs have no vector: the first of them. Not in lists of jobs."""
    dry_run: NotRequired[DryRun]
    """Only of a dry run, which has no vectors. The seconds are in its own record alone, when it has ended."""
    links: JobLinks


@documented
class VectorItem(TypedDict):
    """An input with its vector."""

    index: int
    id: str | None
    embedding: list[float] | str
    scale: NotRequired[float]
    """Of int8: what the numbers are to be multiplied with."""
    tokens: int
    truncated: bool
    chunks: NotRequired[int]
    """In how many the text was embedded, if in more than one."""


class ItemError(TypedDict):
    code: str
    message: str
    retryable: bool


class FailedItem(TypedDict):
    """An input that has no vector."""

    index: int
    id: str | None
    error: ItemError


class JobWithVectors(JobRecord):
    """A job that has ended, with the vectors of its inputs."""

    data: list[VectorItem | FailedItem]


@documented
class ResultPage(TypedDict):
    """A part of a job's result, in the order of the inputs."""

    object: Literal["list"]
    job: str
    status: JobStatus
    offset: int
    count: int
    total: int
    next_offset: int | None
    """Where to read on; null when there is nothing more, now or later."""
    ready: int
    """The first input from `offset` on that has not ended."""
    complete: bool
    data: list[VectorItem | FailedItem]


class ShardSum(TypedDict):
    first: int
    count: int
    sha256: str


class FileSum(TypedDict):
    count: int
    bytes: int
    head_bytes: int
    sha256: str


@documented
class Manifest(TypedDict):
    """What the vectors of an ended job are, and how to tell that a copy of them is whole."""

    object: Literal["manifest"]
    job: str
    status: JobStatus
    model: str
    revision: str | None
    engine: str | None
    device: str | None
    dtype: str | None
    parity: float | None
    dimensions: int | None
    normalize: bool
    prompt_name: str | None
    truncate: str
    counts: Counts
    created_at: float
    ended_at: float
    shards: list[ShardSum]
    """Of each shard's vectors: float32, little-endian, in order."""
    npy: FileSum | None
    """Of `?format=npy`; null when there is no vector."""


class MapPoint(TypedDict):
    index: int
    x: float
    y: float


@documented
class MapRecord(TypedDict):
    """The vectors of a job on the plane of their two principal components."""

    id: str
    object: Literal["map"]
    total: int
    """The job's inputs, of which not all need have a point."""
    points: list[MapPoint]
    """In the order of the inputs. The largest absolute coordinate is 1, and both have the same scale."""
    explained: Annotated[list[float], Field(min_length=2, max_length=2)]
    """The share of the vectors' variance that x and y have."""


class JobList(TypedDict):
    """A page of jobs, newest first."""

    object: Literal["list"]
    data: list[JobRecord]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedJob(TypedDict):
    id: str
    object: Literal["job"]
    deleted: Literal[True]


@documented
class WorkerRecord(TypedDict):
    """What a live worker reports about itself; null is what it does not know."""

    name: str
    queues: tuple[str, ...]
    state: str
    """`idle` or `busy`."""
    model: str
    revision: str
    engine: str
    device: str
    device_name: str | None
    """What its maker calls the device."""
    dtype: str
    dimensions: int
    max_tokens: int
    prompts: tuple[str, ...]
    parity: float | None
    """Worst cosine of its engine against float32 torch."""
    inputs_per_second: float | None
    """While it computes."""
    resident_bytes: int | None
    """Of its process, in RAM."""
    memory_used_bytes: int | None
    """Main memory that all processes of its container use, without what can be given back at once; of its machine, where the
    container has no limit."""
    memory_limit_bytes: int | None
    """What that may be at most."""
    allocated_bytes: int | None
    """Memory of the device that its tensors take."""
    reserved_bytes: int | None
    """Memory of the device that torch has taken, used or not."""
    used_bytes: int | None
    """Memory of the device that all processes use."""
    total_bytes: int | None
    utilization_ratio: float | None
    """Share of the last moment in which the device computed anything."""
    temperature_celsius: float | None
    power_watts: float | None
    facts: dict[str, Any]
    """All its figures: memory, what was done so far, the last batch."""
    seen_at: float
    """When it reported last, by Redis' clock."""
    silent: bool
    """It has not reported for two heartbeats."""


@documented
class QueueRecord(TypedDict):
    """One queue, counted in inputs."""

    name: str
    """As a worker's `-Q` names it: `cpu`, or `cpu.large` of a further model."""
    object: Literal["queue"]
    queue: str
    """As jobs name it: `cpu` or `gpu`."""
    model: str
    auto_share: float
    """Share of the model's new `auto` jobs that come to this queue."""
    auto_share_reason: str
    stalled: bool
    """There is work, and no worker lives: what runs was in flight when the last one died."""
    waiting: dict[str, int]
    """Inputs that wait, by priority."""
    running: int
    backlog: int
    """What waits and what runs."""
    suspects: int
    """Shards that were in flight when a worker died, and are tried alone."""
    oldest_seconds: float
    workers: list[WorkerRecord]


@documented
class Throughput(TypedDict):
    """Inputs that got a vector, in each of the last times of so many seconds, oldest first; the last one is still running."""

    seconds_each: int
    inputs: tuple[int, ...]


@documented
class QueueTotals(TypedDict):
    waiting: int
    max_waiting: int
    waiting_bytes: int
    """Of the texts that Redis holds until their vectors are stored."""
    max_waiting_bytes: int | None
    redis_used_bytes: int | None
    """Null where Redis may not be asked (`INFO`)."""
    redis_max_bytes: int | None
    """Redis' `maxmemory`; null where it has none."""
    running: int
    workers: int
    jobs: dict[str, int]
    """Those that have not ended, by status."""
    counters: dict[str, int]
    """Totals since the ledger began."""
    throughput: Throughput


class QueueList(TypedDict):
    object: Literal["list"]
    data: list[QueueRecord]
    totals: QueueTotals


@documented
class WorkerKind(TypedDict):
    """Live workers that compute alike."""

    device: str
    engine: str
    dtype: str
    revision: str
    parity: float | None
    """The worst of theirs."""
    queues: list[str]
    count: int


@documented
class ModelRecord(TypedDict):
    """A model in OpenAI's shape, and what its live workers say of it; null is what none of them has said."""

    id: str
    object: Literal["model"]
    created: Literal[0]
    """No one knows when a model was made."""
    owned_by: str
    alias: str | None
    default: bool
    live: bool
    """Whether a worker of it lives."""
    revision: str | None
    dimensions: int | None
    max_tokens: int | None
    prompts: list[str] | None
    workers: list[WorkerKind]


class EmbeddingItem(TypedDict):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(TypedDict):
    prompt_tokens: int
    total_tokens: int


@documented
class Embeddings(TypedDict):
    """The vectors of a request, in OpenAI's shape and in the order of its texts."""

    object: Literal["list"]
    data: list[EmbeddingItem]
    model: str
    usage: Usage
    """The model's tokens, after texts were cut."""
    truncated: NotRequired[list[int]]
    """Which texts were cut; left out when none was."""


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ModelRecord]


class EventSubject(TypedDict):
    id: str


@documented
class EventRecord(TypedDict):
    """What a webhook is told, in the shape of OpenAI's events."""

    id: str
    """The same at every try: the header `webhook-id`."""
    object: Literal["event"]
    type: str
    """Such as `job.succeeded`."""
    created_at: int
    data: EventSubject


@documented
class DeliveryRecord(TypedDict):
    """An event on its way to one target."""

    object: Literal["webhook.delivery"]
    event: EventRecord
    target: str
    """Its host, and its port if the URL names one."""
    state: State
    tries: int
    status: int | None
    """Of the answer to the last try."""
    error: str | None
    """Why there was none, such as `timeout`."""
    next_try_at: float | None
    ended_at: float | None


class DeliveryList(TypedDict):
    object: Literal["list"]
    data: list[DeliveryRecord]


class Index(TypedDict):
    name: str
    model: str
    links: dict[str, str]


class Alive(TypedDict):
    status: Literal["ok"]


@documented
class Ready(TypedDict):
    status: Literal["ready"]
    redis: Literal["ok"]
    queues: dict[str, list[str]]
    """The names of each queue's workers."""
    models: dict[str, Literal["live", "no worker"]]


class FileRecord(TypedDict):
    """A file. Times are whole Unix seconds."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"]
    status_details: None


class FileList(TypedDict):
    """A page of files."""

    object: Literal["list"]
    data: list[FileRecord]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(TypedDict):
    id: str
    object: Literal["file"]
    deleted: Literal[True]


class BatchError(TypedDict):
    """What is wrong with a line of a batch's file."""

    code: str
    message: str
    param: str | None
    line: int | None


class BatchErrors(TypedDict):
    object: Literal["list"]
    data: list[BatchError]


class BatchRecord(TypedDict):
    """A batch. Times are whole Unix seconds; null is what did not happen."""

    id: str
    object: Literal["batch"]
    endpoint: Literal["/v1/embeddings"]
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Literal["in_progress", "completed", "failed", "expired", "cancelled"]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: dict[str, int]
    usage: dict[str, int | dict[str, int]]
    metadata: dict[str, str] | None


class BatchList(TypedDict):
    """A page of batches, newest first."""

    object: Literal["list"]
    data: list[BatchRecord]
    first_id: str | None
    last_id: str | None
    has_more: bool
