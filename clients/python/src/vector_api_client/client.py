"""The service's jobs, from Python."""

import base64
import contextlib
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import numpy as np
import orjson

from vector_api_client.errors import InputsFailed, NotFound
from vector_api_client.inputs import Input, Inputs
from vector_api_client.records import InputError, Job, JobResult, Result, Vectors
from vector_api_client.transport import MOST_SECONDS_HELD, Deadline, OnRetry, Transport

DEFAULT_URL = "http://127.0.0.1:8000"

FIRST_PAGE_INPUTS = 256
MOST_PAGE_INPUTS = 10_000
PAGE_FLOATS = 2**20
"""Numbers in a page of results: 4 MB, so that memory does not grow with the job or the model."""

POLL_SECONDS = 1.0
"""How long to wait for more of a running job's results before looking again."""


@dataclass(frozen=True)
class Page:
    """Results that follow each other. `next_offset` is where to read on, None at the end."""

    results: tuple[Result, ...]
    next_offset: int | None
    total: int


class Client:
    """A vector-api.

    Args:
        base_url: where it is; else VECTOR_API_URL of the environment, else this machine's port 8000.
        api_key: needed where the service asks for one; else VECTOR_API_KEY of the environment.
        retry_seconds: how long a request is tried again while nobody answers or the service says 429, 502, 503 or 504.
            `Retry-After` is obeyed, up to 120 s. No request does harm when it is repeated.
        on_retry: called with the error and the seconds of the pause before each new try.

    Every method raises a `VectorApiError` of `vector_api_client.errors` and no other error for what the service or the network
    does. Where a method takes a job it also takes a job's id. Methods with `timeout_seconds` raise `TimedOut` at its end.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        retry_seconds: float = 120,
        on_retry: OnRetry = lambda error, pause: None,
    ) -> None:
        url = base_url or os.environ.get("VECTOR_API_URL") or DEFAULT_URL
        key = api_key or os.environ.get("VECTOR_API_KEY") or None
        self._http = Transport(url, key, retry_seconds=retry_seconds, on_retry=on_retry)
        self.base_url = self._http.base_url
        self.has_key = key is not None

    # Jobs -------------------------------------------------------------------------------------------------------------

    def submit(
        self,
        inputs: Iterable[Input] | Inputs,
        *,
        idempotency_key: str | None = None,
        timeout_seconds: float | None = None,
        on_sent: Callable[[int], None] = lambda size: None,
        **options: Any,
    ) -> Job:
        """A new job for the inputs: texts, or mappings of `text` and `id`; any number of them, from any iterator.

        Args:
            idempotency_key: the same key and inputs give the same job, and no second one. Made up if not given, so that the
                retries of this very call make one job.
            on_sent: gets the bytes of each piece that was sent; from the start again when the request is repeated.
            options: those of POST /v1/jobs, such as `queue="gpu"` or `dimensions=256`.

        Raises:
            BadInput: one of the inputs cannot be embedded; nothing was sent.
        """
        deadline = Deadline(timeout_seconds)
        with contextlib.nullcontext(inputs) if isinstance(inputs, Inputs) else Inputs(inputs) as made:
            headers = {
                "Content-Type": "application/x-ndjson",
                "Content-Length": str(made.size_bytes),
                "Idempotency-Key": idempotency_key or uuid.uuid4().hex,
            }
            record = self._http.json(
                "POST",
                "/v1/jobs",
                params=_as_query(options),
                body=lambda: made.pieces(on_sent),
                headers=headers,
                deadline=deadline,
            )
        return Job.from_record(record)

    def dry_run(
        self, inputs: Iterable[Input] | Inputs, *, timeout_seconds: float | None = None, **options: Any
    ) -> Mapping[str, Any]:
        """What a job of these inputs would be: `tokens`, `over_long`, `duplicates`, `bytes`, `seconds`; None is not known.

        No vectors are computed. `options` are those of `submit`.
        """
        deadline = Deadline(timeout_seconds)
        job = self.submit(inputs, timeout_seconds=timeout_seconds, dry_run=True, **options)
        ended = self.wait(job, timeout_seconds=None if timeout_seconds is None else max(0.001, deadline.left()))
        return ended.dry_run or {}

    def show(self, job: Job | str, *, wait_seconds: float = 0) -> Job:
        """The job as it is now, or as it is when it ends within `wait_seconds` (30 at most)."""
        return self._show(job, wait_seconds, Deadline())

    def _show(self, job: Job | str, wait_seconds: float, deadline: Deadline) -> Job:
        params = {"wait": min(wait_seconds, MOST_SECONDS_HELD)} if wait_seconds else None
        return Job.from_record(self._http.json("GET", _path(job), params=params, deadline=deadline))

    def _look(self, job: Job | str, deadline: Deadline) -> Job:
        """The job as it is when it ends or `POLL_SECONDS` are over."""
        return self._show(job, max(0.001, min(POLL_SECONDS, deadline.left())), deadline)

    def wait(
        self, job: Job | str, *, timeout_seconds: float | None = None, on_progress: Callable[[Job], None] = lambda job: None
    ) -> Job:
        """The job when it has ended. `on_progress` gets it as it is about every second."""
        deadline = Deadline(timeout_seconds)
        while not (found := self._look(job, deadline)).ended:
            on_progress(found)
            deadline.check()
        on_progress(found)
        return found

    def jobs(self, *, status: str | None = None) -> Iterator[Job]:
        """The jobs of this key, newest first, read as they are asked for."""
        after = None
        while True:
            wanted = {"limit": 100, "status": status, "after": after}
            page = self._http.json("GET", "/v1/jobs", params={name: value for name, value in wanted.items() if value is not None})
            yield from map(Job.from_record, page["data"])
            if not page.get("has_more"):
                return
            after = page["last_id"]

    def cancel(self, job: Job | str) -> Job:
        """The job, cancelled; or as it is, if it had ended before. What was finished stays readable."""
        return Job.from_record(self._http.json("POST", f"{_path(job)}/cancel"))

    def delete(self, job: Job | str) -> None:
        """Remove the job and its vectors; one that still runs is cancelled first. No error when it is gone by then.

        Raises:
            NotFound: there was no such job.
        """
        self.cancel(job)
        with contextlib.suppress(NotFound):  # an earlier try did it and its answer was lost
            self._http.request("DELETE", _path(job))

    # Vectors ----------------------------------------------------------------------------------------------------------

    def pages(
        self,
        job: Job | str,
        *,
        offset: int = 0,
        timeout_seconds: float | None = None,
        on_wait: Callable[[Job], None] = lambda job: None,
    ) -> Iterator[Page]:
        """The job's results from input `offset` on, in order, each as soon as it and those before it are there.

        Ends with the job. One page is held at a time. A connection that is cut costs at most the page that was on its way.
        `on_wait` gets the job whenever there is nothing more to read as yet, about every second.
        """
        deadline = Deadline(timeout_seconds)
        limit, at = FIRST_PAGE_INPUTS, offset
        while True:
            deadline.check()
            params = {"format": "base64", "offset": at, "limit": limit}
            answer = self._http.json("GET", f"{_path(job)}/result", params=params, deadline=deadline)
            results = tuple(map(_result, answer["data"]))
            following = answer["next_offset"]
            if results:
                limit = _page_inputs(results, limit)
                yield Page(results, following, answer["total"])
            if following is None:
                return
            if following == at:
                on_wait(self._look(job, deadline))
            at = following

    def stream(self, job: Job | str, *, offset: int = 0, timeout_seconds: float | None = None) -> Iterator[Result]:
        """The results one by one, as `pages` gives them. A cancelled job has gaps: `index` tells which input it is."""
        for page in self.pages(job, offset=offset, timeout_seconds=timeout_seconds):
            yield from page.results

    def result(self, job: Job | str, *, timeout_seconds: float | None = None) -> JobResult:
        """All of the job's results at once; waits for those that are missing."""
        vectors: Vectors = np.empty((0, 0), dtype=np.float32)
        ids: list[str | None] = []
        errors, truncated = list[InputError](), list[int]()
        for page in self.pages(job, timeout_seconds=timeout_seconds):
            if not ids:
                ids = [None] * page.total
                vectors = np.empty((page.total, 0), dtype=np.float32)
            for found in page.results:
                ids[found.index] = found.id
                if found.embedding is not None:
                    if not vectors.shape[1]:
                        vectors = np.full((page.total, len(found.embedding)), np.nan, dtype=np.float32)
                    vectors[found.index] = found.embedding
                if found.truncated:
                    truncated.append(found.index)
                if found.error is not None:
                    errors.append(found.error)
        return JobResult(vectors, ids, errors, truncated)

    def embed(self, texts: Iterable[Input], *, timeout_seconds: float | None = None, **options: Any) -> Vectors:
        """The texts' vectors, float32, (texts, dimensions): submit, wait and read in one call.

        `options` are those of POST /v1/jobs; `priority` is `interactive` unless it is given.

        Raises:
            InputsFailed: some have none; its `result` has the others.
        """
        deadline = Deadline(timeout_seconds)
        job = self.submit(texts, timeout_seconds=timeout_seconds, **({"priority": "interactive"} | options))
        found = self.result(job, timeout_seconds=None if timeout_seconds is None else max(0.001, deadline.left()))
        missing = int(np.isnan(found.vectors[:, 0]).sum()) if found.vectors.size else job.total
        if missing:
            first = f"inputs[{found.errors[0].index}] {found.errors[0].message}" if found.errors else "the job was cancelled"
            raise InputsFailed(f"{missing} of {job.total} inputs have no vector: {first}", found)
        return found.vectors

    # The service ------------------------------------------------------------------------------------------------------

    def queues(self) -> dict[str, Any]:
        """What waits, what runs, and which workers live, as GET /v1/queues says it."""
        found: dict[str, Any] = self._http.json("GET", "/v1/queues")
        return found

    def models(self) -> list[dict[str, Any]]:
        """The models that are served, as GET /v1/models says it: `id`, and what the service knows beside it.

        Raises:
            NotFound: the service is too old to tell.
        """
        found: list[dict[str, Any]] = self._http.json("GET", "/v1/models")["data"]
        return found

    def health(self) -> dict[str, Any]:
        """What GET /readyz says. Raises Unavailable while the service cannot take jobs."""
        found: dict[str, Any] = self._http.json("GET", "/readyz")
        return found

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _path(job: Job | str) -> str:
    return f"/v1/jobs/{quote(job if isinstance(job, str) else job.id, safe='')}"


def _as_query(options: Mapping[str, Any]) -> dict[str, str]:
    """Options as the query of an NDJSON request has them; None is an option that is not given."""
    return {
        name: value if isinstance(value, str) else orjson.dumps(value).decode()
        for name, value in options.items()
        if value is not None
    }


def _result(item: Mapping[str, Any]) -> Result:
    index, input_id = int(item["index"]), item.get("id")
    if error := item.get("error"):
        return Result(index, input_id, None, error=InputError.from_record(error, index))
    embedding = np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4")
    return Result(index, input_id, embedding, int(item.get("tokens") or 0), bool(item.get("truncated")))


def _page_inputs(results: Iterable[Result], before: int) -> int:
    """Inputs of a page, so that it holds about `PAGE_FLOATS`."""
    dimensions = next((len(found.embedding) for found in results if found.embedding is not None), 0)
    return min(MOST_PAGE_INPUTS, max(1, PAGE_FLOATS // dimensions)) if dimensions else before
