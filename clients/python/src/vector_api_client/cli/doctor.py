"""`vector-api doctor`: whether a service can be used from here, and what to do where it cannot."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vector_api_client.client import Client
from vector_api_client.errors import NotFound, Unauthorized, Unavailable, VectorApiError

ROUND_TRIP_SECONDS = 60.0
TEXT = "Is anybody there?"


@dataclass(frozen=True)
class Finding:
    """What a check found. `hint` says what to do when it is not `good`."""

    good: bool
    text: str
    hint: str = ""


def examine(client: Client) -> Iterator[Finding]:
    """The checks, one after the other; the first bad one ends them, as the others rest on it."""
    checks: tuple[Callable[[Client], Iterator[Finding]], ...] = (_answers, _workers, _round_trip)
    for check in checks:
        for finding in check(client):
            yield finding
            if not finding.good:
                return


def _answers(client: Client) -> Iterator[Finding]:
    try:
        client.queues()
    except Unauthorized as error:
        yield Finding(True, f"{client.base_url} answers")
        yield Finding(False, error.message, "set VECTOR_API_KEY to a key of this service (it makes one with: make key NAME=you)")
    except Unavailable as error:
        if error.__cause__ is not None:
            hint = "is the service running (make run), and is VECTOR_API_URL or --url right?"
            yield Finding(False, error.message, hint)
        else:
            yield Finding(True, f"{client.base_url} answers")
            yield Finding(False, error.message, "the service runs, its Redis does not: look at the service's log")
    except VectorApiError as error:
        yield Finding(False, error.message, "is VECTOR_API_URL or --url that of a vector-api?")
    else:
        key = "the key is accepted" if client.has_key else "no key is asked for"
        yield Finding(True, f"{client.base_url} answers, {key}, Redis is ready")


def _workers(client: Client) -> Iterator[Finding]:
    live = [(queue["name"], worker) for queue in client.queues()["data"] for worker in queue["workers"]]
    hint = "start one: celery -A worker worker -Q cpu (one that has just started is seen when it has loaded its model)"
    if not live:
        yield Finding(False, "no worker is alive: jobs would wait", hint)
    for queue, worker in live:
        facts = [worker.get(name) for name in ("model", "engine", "dtype", "device")]
        yield Finding(True, f"queue {queue}: {worker.get('name')} ({', '.join(str(fact) for fact in facts if fact)})")


def _round_trip(client: Client) -> Iterator[Finding]:
    started = time.monotonic()
    job = client.submit([TEXT], priority="interactive")
    try:
        found = client.result(job, timeout_seconds=ROUND_TRIP_SECONDS)
    except VectorApiError as error:
        yield Finding(False, f"one text came not back: {error.message}", f"vector-api show {job.id} tells more")
        return
    milliseconds = 1000 * (time.monotonic() - started)
    if found.errors:
        yield Finding(False, f"one text failed: {found.errors[0].message}", "look at the worker's log")
    else:
        yield Finding(True, f"one text went there and came back in {milliseconds:,.0f} ms, {found.vectors.shape[1]} dimensions")
    with contextlib.suppress(NotFound):
        client.delete(job)
