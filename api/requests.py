"""What is told of each request: it is counted for `/metrics`, has a line in the log, and a span where tracing is on."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flask import Flask, Response, g, has_request_context, request

from api.errors import shown_path
from api.metrics import Metrics
from api.openapi import path_of
from core import tracing
from core.logs import withheld
from core.tracing import NOTHING, Span

log = logging.getLogger(__name__)

POLLED = {"/healthz", "/readyz", "/metrics", "/v1/queues", "/dashboard/{name}"}
"""Asked by machines every few seconds: their lines are for LOG_LEVEL=DEBUG, and they have no spans."""

SPAN_FIELDS = ("request_id", "tenant", "job")
"""Those of a line's fields that a span has as well."""

METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"}
OTHER, UNKNOWN = "_OTHER", "unknown"
"""In `/metrics` the method and the path of all that we do not know: whoever asks must not be able to make up labels."""


def register(app: Flask, metrics: Metrics) -> None:
    """To be called before other modules register: what they do counts as part of a request."""
    app.before_request(_begin)
    app.after_request(lambda answer: _count(answer, metrics))
    app.after_request(_end_with)


def ids() -> Mapping[str, str]:
    """Of the current request, for records of the log."""
    if not has_request_context():
        return {}
    return {"request_id": g.get("request_id", ""), "trace_id": current_span().trace_id}


def current_span() -> Span:
    """That of the current request."""
    found: Span = g.get("span", NOTHING) if has_request_context() else NOTHING
    return found


def concerns(job_id: str) -> None:
    """The current request is about a job of which its path does not tell."""
    if has_request_context():
        g.job = job_id


def _begin() -> None:
    g.begun = time.perf_counter()
    if tracing.is_on() and _endpoint() not in POLLED:
        method = _method()
        attributes = {
            "http.request.method": method,
            "http.route": _endpoint() or None,
            "url.path": request.path[:200],
            "url.scheme": request.scheme,
        }
        headers = {name.lower(): value for name, value in request.headers}
        g.span = tracing.begin_request(f"{method} {_endpoint()}".strip(), headers, **attributes)


def _count(answer: Response, metrics: Metrics) -> Response:
    """Count it when its answer is made; one that is sent as it is made, when it is sent."""
    method, endpoint, status, begun = _method(), _endpoint() or UNKNOWN, answer.status_code, g.begun

    def count() -> None:
        metrics.count(method, endpoint, status, time.perf_counter() - begun)

    if answer.is_streamed:
        answer.call_on_close(count)
    else:
        count()
    return answer


def _end_with(answer: Response) -> Response:
    """The request is over when its answer is sent, or its client has gone."""
    endpoint, begun, span = _endpoint(), g.begun, current_span()
    fields = {
        "request_id": g.get("request_id", ""),
        "trace_id": span.trace_id,
        "tenant": g.get("tenant", ""),
        "job": g.get("job") or (request.view_args or {}).get("job_id", "")[:64],
        "method": request.method,
        "endpoint": endpoint,
        "status": answer.status_code,
    }
    what = f"{request.method} {shown_path()} {answer.status_code}"
    level = logging.DEBUG if endpoint in POLLED else logging.INFO
    stream = Stream(answer.response) if answer.is_streamed else None
    if stream:
        answer.response = stream

    def end() -> None:
        ms = round(1000 * (time.perf_counter() - begun), 1)
        told = fields | {"ms": ms}
        error, left = (stream.error, stream.left) if stream else (None, False)
        if error:
            log.error("%s broke off after %g ms", what, ms, extra=told, exc_info=withheld(error))
        else:
            log.log(level, "%s in %g ms%s", what, ms, ", its client left before the end" if left else "", extra=told)
        if left:
            span.note("client left")
        span.set(**{"http.response.status_code": answer.status_code}, **{name: fields[name] for name in SPAN_FIELDS})
        span.end(type(error).__name__ if error else str(answer.status_code) if answer.status_code >= 500 else "")

    answer.call_on_close(end)
    return answer


class Stream:
    """An answer that is sent as it is made, and what came of it: its status had to be said at the beginning."""

    def __init__(self, pieces: Iterable[Any]) -> None:
        self._pieces = pieces
        self._under_way = False
        self.error: Exception | None = None
        """What broke it off."""

    @property
    def left(self) -> bool:
        """The client took some of it, and not all."""
        return self._under_way and self.error is None

    def __iter__(self) -> Iterator[Any]:
        self._under_way = True
        try:
            yield from self._pieces
        except Exception as error:
            self.error = error
            raise
        self._under_way = False

    def close(self) -> None:
        if hasattr(self._pieces, "close"):
            self._pieces.close()


def _method() -> str:
    return request.method if request.method in METHODS else OTHER


def _endpoint() -> str:
    return path_of(request.url_rule) if request.url_rule else ""
