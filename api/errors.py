"""From an error to an answer. HTTP status codes of errors live here and nowhere else.

Every answer that is not a success has this body, the shape OpenAI's clients read:

    {"error": {"message": "…", "type": "invalid_request_error", "param": "inputs[3].text", "code": "invalid_request"}}

and tells the client whether trying again makes sense: `Retry-After` when it does, `x-should-retry: false` when the same request
will be refused again (OpenAI's clients would otherwise repeat a 409).
"""

import logging
import re
import uuid
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import quote

import orjson
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from core.errors import (
    BatchEnded,
    BatchNotFound,
    FileNotFound,
    Forbidden,
    IdempotencyConflict,
    InputFailed,
    InvalidRequest,
    JobNotFound,
    JobNotReady,
    LedgerUnavailable,
    ModelNotFound,
    NotInTime,
    RangeNotSatisfiable,
    RequestTooLarge,
    ResultStoreUnavailable,
    TryLater,
    Unauthorized,
    VectorApiError,
)
from core.logs import withheld, withhold

log = logging.getLogger(__name__)

INVALID, RATE_LIMIT, SERVER = "invalid_request_error", "rate_limit_error", "server_error"


class Kind(NamedTuple):
    status: int
    type: str
    retry_after_seconds: int | None
    """None: the same request will be refused again."""


KINDS: dict[type[VectorApiError], Kind] = {
    InvalidRequest: Kind(400, INVALID, None),
    Unauthorized: Kind(401, INVALID, None),
    Forbidden: Kind(403, INVALID, None),
    ModelNotFound: Kind(404, INVALID, None),
    JobNotFound: Kind(404, INVALID, None),
    FileNotFound: Kind(404, INVALID, None),
    BatchNotFound: Kind(404, INVALID, None),
    BatchEnded: Kind(409, INVALID, None),
    IdempotencyConflict: Kind(409, INVALID, None),
    JobNotReady: Kind(409, INVALID, 1),
    RequestTooLarge: Kind(413, INVALID, None),
    RangeNotSatisfiable: Kind(416, INVALID, None),
    TryLater: Kind(429, RATE_LIMIT, 60),
    InputFailed: Kind(500, SERVER, None),
    NotInTime: Kind(503, SERVER, 1),
    LedgerUnavailable: Kind(503, SERVER, 1),
    ResultStoreUnavailable: Kind(503, SERVER, 5),
    VectorApiError: Kind(500, SERVER, None),
}

UNREACHABLE = (
    "the service's Redis cannot be reached or refuses to write; try again (with an Idempotency-Key that can make no second job)"
)

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def register(app: Flask) -> None:
    """Answer every error of the application in the one shape, and name the request in every answer."""
    app.before_request(_name_request)
    app.after_request(_add_request_id)
    app.register_error_handler(VectorApiError, _answer_our_error)
    app.register_error_handler(HTTPException, _answer_http_error)
    app.register_error_handler(Exception, _answer_unexpected)
    app.log_exception = _log_unexpected  # type: ignore[method-assign]  # of what fails after a view; with its message and path
    app.logger.addFilter(withhold)


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> bytes:
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def kind_of(error: VectorApiError | type[VectorApiError]) -> Kind:
    """The table's row for the error's class, or for the nearest class above it."""
    kind = error if isinstance(error, type) else type(error)
    return next(KINDS[found] for found in kind.__mro__ if found in KINDS)


def body_of(error: VectorApiError) -> bytes:
    """What the client is told of an error: nothing that Redis or the result store said of hosts and paths."""
    message = error.message
    if error.__cause__ is not None and isinstance(error, LedgerUnavailable):
        message = UNREACHABLE
    if error.__cause__ is not None and isinstance(error, ResultStoreUnavailable):
        message = f"the result store {error.store} cannot be reached or refuses; the job is unharmed, try again"
    return error_body(message, kind_of(error).type, error.param, error.code)


def _answer_our_error(error: VectorApiError) -> Response:
    kind = kind_of(error)
    retry_after = error.retry_after_seconds if isinstance(error, TryLater) else kind.retry_after_seconds
    if kind.status >= 500:
        told = {"status": kind.status}
        log.warning("%s %s answered %d: %s", request.method, shown_path(), kind.status, error.message, extra=told)
    if isinstance(error, InputFailed) and error.retryable:
        retry_after = 1
    answer = _answer(kind.status, body_of(error))
    if retry_after is None:
        answer.headers["x-should-retry"] = "false"
    else:
        answer.headers["Retry-After"] = str(retry_after)
    if isinstance(error, RangeNotSatisfiable):
        answer.headers["Content-Range"] = f"bytes */{error.size_bytes}"
    if isinstance(error, Unauthorized):
        answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


def _answer_http_error(error: HTTPException) -> Response | HTTPException:
    status = error.code or 500
    if status < 400:
        return error
    message = error.description or HTTPStatus(status).phrase
    shown = f"{request.method} {request.path[:200]}"
    if isinstance(error, NotFound):
        message = f"there is no {shown}"
    elif isinstance(error, MethodNotAllowed):
        message = f"there is no {shown}; the methods here are {', '.join(sorted(error.valid_methods or ()))}"
    code = HTTPStatus(status).phrase.lower().replace(" ", "_")
    answer = _answer(status, error_body(message, INVALID if status < 500 else SERVER, None, code))
    if isinstance(error, MethodNotAllowed):
        answer.headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
    if status != HTTPStatus.REQUEST_TIMEOUT:
        answer.headers["x-should-retry"] = "false"
    return answer


def _log_unexpected(exc_info: Any) -> None:
    error = exc_info[1]
    log.error("%s %s failed, request %s", request.method, shown_path(), g.request_id, exc_info=withheld(error))


def _answer_unexpected(error: Exception) -> Response:
    _log_unexpected((type(error), error, error.__traceback__))
    message = f"an error of the service itself; its log tells more under request {g.request_id}"
    return _answer(500, error_body(message, SERVER, None, VectorApiError.code))


def shown_path() -> str:
    """The request's path for the log, where it must not begin a new line. Its query is left out."""
    return quote(request.path[:200])


def _answer(status: int, body: bytes) -> Response:
    return Response(body, status, mimetype="application/json")


def _name_request() -> None:
    sent = request.headers.get("x-request-id", "")
    g.request_id = sent if REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex


def _add_request_id(answer: Response) -> Response:
    answer.headers["x-request-id"] = g.request_id
    return answer
