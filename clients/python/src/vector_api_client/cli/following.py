"""A job's vectors into the output, as they become ready."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO

import orjson

from vector_api_client.cli.order import Order
from vector_api_client.cli.readers import BadFile
from vector_api_client.cli.screen import Screen
from vector_api_client.cli.source import SHOWN_PROBLEMS, Source
from vector_api_client.cli.state import State
from vector_api_client.cli.writers import Row, Writer
from vector_api_client.client import Client, Page
from vector_api_client.errors import NotFound, VectorApiError
from vector_api_client.records import Job, Result

DONE, SOME_FAILED = 0, 3
CHECKPOINT_SECONDS = 1.0
IDLE_SECONDS = 3.0
"""How long nothing may happen before the queue is looked at."""
ROWS_AT_ONCE = 1000


class Follower:
    """Writes a job's vectors as they become ready."""

    def __init__(
        self, order: Order, state: State, source: Source, client: Client, screen: Screen, writer: Writer, errors: BinaryIO
    ) -> None:
        self._order, self._state, self._source = order, state, source
        self._client, self._screen, self._writer, self._errors = client, screen, writer, errors
        self._saved = self._moved = time.monotonic()
        self._ended = 0
        self._warned = ""
        self._kept = state

    def run(self, job: Job) -> int:
        """Returns the exit code."""
        started, before = time.monotonic(), self._state.rows
        self._keep()
        self._save()
        try:
            with self._screen.stage("embedding", self._source.rows.count, done=before) as stage:
                for page in self._client.pages(job, offset=self._state.sent, on_wait=self._look):
                    self._write(list(self._rows_of(page)))
                    stage.set(self._state.rows)
                while rest := list(itertools.islice(self._rows_before(self._source.inputs.count), ROWS_AT_ONCE)):
                    self._write(rest)
        except KeyboardInterrupt:
            self._save()
            self._screen.warn(
                f"\ninterrupted; job {job.id} goes on, {self._kept.rows:,} of {self._source.rows.count:,} are written.\n"
                f"  to go on:   the same command again\n  to stop it: vector-api cancel {job.id}"
            )
            raise
        except NotFound:
            raise gone(job.id, self._order) from None
        except VectorApiError:
            self._save()
            raise
        return self._finish(None if before else time.monotonic() - started)

    def _rows_of(self, page: Page) -> Iterator[Row]:
        """The rows of a page's results, with those that stand between them in the file."""
        for result in page.results:
            yield from self._rows_before(result.index)
            yield self._row(result)

    def _rows_before(self, index: int) -> Iterator[Row]:
        """The rows up to that of an input: lines that were not sent, and inputs that a cancelled job did not get to."""
        while self._state.rows < self._source.rows.count:
            line, sent = self._source.rows.at(self._state.rows)
            if sent and self._state.sent >= index:
                return
            self._state.cancelled += sent
            yield self._counted(Row(self._state.rows, line, error="cancelled" if sent else "bad_line"), sent=sent)

    def _row(self, result: Result) -> Row:
        line, _ = self._source.rows.at(self._state.rows)
        row = Row(self._state.rows, line, result.id, result.embedding, result.tokens, result.truncated)
        if error := result.error:
            row = replace(row, error=error.code)
            record = {"index": row.index, "line": line, "id": row.id, "code": error.code, "message": error.message}
            self._errors.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
            self._state.failed += 1
        self._state.truncated += result.truncated
        return self._counted(row, sent=True)

    def _counted(self, row: Row, *, sent: bool) -> Row:
        self._state.rows += 1
        self._state.sent += sent
        return row

    def _write(self, rows: list[Row]) -> None:
        self._writer.write(rows)
        self._keep()
        self._moved = time.monotonic()
        if self._moved - self._saved >= CHECKPOINT_SECONDS:
            self._save()

    def _keep(self) -> None:
        """What is counted and what is written agree here. At any other time the one may be ahead of the other."""
        self._kept = replace(
            self._state,
            part_bytes=self._writer.part.tell(),
            error_bytes=self._errors.tell(),
            dimensions=self._writer.dimensions,
        )

    def _save(self) -> None:
        """Leave the state for a later run, which cuts off whatever the files hold beyond it."""
        self._errors.flush()
        self._writer.sync()
        self._kept.save(self._order.state_file)
        self._saved = time.monotonic()

    def _look(self, job: Job) -> None:
        """Say why nothing happens, when nothing happens."""
        if job.done + job.failed != self._ended:
            self._ended, self._moved = job.done + job.failed, time.monotonic()
        if time.monotonic() - self._moved < IDLE_SECONDS or job.ended:
            return
        self._moved = time.monotonic()
        told = why_waiting(job, self._client.queues())
        if told and told != self._warned:
            self._screen.warn(told)
        self._warned = told

    def _finish(self, seconds: float | None) -> int:
        """Say how it went. `seconds` is how long it took, if this was the only run."""
        state, order, screen = self._state, self._order, self._screen
        self._save()
        self._writer.finish(order.output)
        order.state_file.unlink()
        vectors = state.sent - state.failed - state.cancelled
        rate = f" in {seconds:.1f} s, {state.sent / seconds:,.0f} texts/s" if seconds else ""
        size = f" of {self._writer.dimensions} dimensions" if self._writer.dimensions else ""
        screen.say(f"{counted(vectors, 'vector')}{size} in {order.output}{rate}")
        if state.truncated:
            screen.warn(
                f"{counted(state.truncated, 'text')} longer than the model takes, and cut; --truncate chunk embeds all of them"
            )
        if state.cancelled:
            screen.warn(f"the job was cancelled before it came to {counted(state.cancelled, 'text')}")
        without = state.failed + self._source.bad
        if without:
            screen.warn(f"{without:,} of {state.rows:,} have no vector; {order.errors_file} says why of each. The first:")
            self._errors.flush()
            with order.errors_file.open("rb") as errors:
                for record in map(orjson.loads, itertools.islice(errors, SHOWN_PROBLEMS)):
                    screen.warn(f"  {order.unit} {record['line']:,}: {record['message']}")
        return SOME_FAILED if vectors < state.rows else DONE


def why_waiting(job: Job, queues: dict[str, Any]) -> str:
    """Why a job does not go on, as far as the queues tell; empty when they do not."""
    queue = next((queue for queue in queues["data"] if queue["name"] == job.queue), None)
    if queue is None:
        return ""
    if not queue.get("workers"):
        return f"the job waits: no worker for {job.queue} is alive (one starts with: celery -A worker worker -Q {job.queue})"
    if job.status == "queued":
        return f"the job waits its turn: {queue.get('backlog', 0):,} texts wait or run in queue {job.queue}"
    return ""


def counted(count: int, noun: str) -> str:
    """`1 text`, `2,000 texts`"""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def gone(job: str, order: Order) -> VectorApiError:
    return BadFile(f"job {job} is gone: it expired or was deleted. --overwrite sends {order.name} again")
