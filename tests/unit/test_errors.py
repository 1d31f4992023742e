"""Every error becomes the one shape, with the right status and without our internals."""

import inspect
import logging
from collections.abc import Callable

import fakeredis
import pytest
import redis
from flask import Flask, Response
from flask.testing import FlaskClient

from api import create_app
from api.errors import KINDS, kind_of
from core import errors
from core.config import Settings
from core.ledger import Ledger
from core.logs import JsonLines


@pytest.fixture
def app() -> Flask:
    return create_app(Settings(), ledger=Ledger(fakeredis.FakeRedis(), "test:"))


def raised_by(app: Flask, raise_it: Callable[[], None]) -> FlaskClient:
    """A client of the app, in which `/boom` raises."""

    def boom() -> str:
        raise_it()
        return ""

    app.add_url_rule("/boom", view_func=boom)
    return app.test_client()


def tree() -> list[type[errors.VectorApiError]]:
    found = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    return [kind for kind in found if issubclass(kind, errors.VectorApiError) and not issubclass(kind, errors.TryLater)]


@pytest.mark.parametrize("kind", tree(), ids=lambda kind: kind.__name__)
def test_every_error_of_the_service_has_its_status_and_code(app: Flask, kind: type[errors.VectorApiError]) -> None:
    def fail() -> None:
        raise kind("what happened", param="field")

    answer = raised_by(app, fail).get("/boom")
    row = kind_of(kind(""))
    assert answer.status_code == row.status
    assert answer.get_json() == {"error": {"message": "what happened", "type": row.type, "param": "field", "code": kind.code}}
    assert ("x-should-retry" in answer.headers) == (row.retry_after_seconds is None)
    assert ("retry-after" in answer.headers) == (row.retry_after_seconds is not None)


def test_table_is_what_the_documentation_says() -> None:
    assert {kind.__name__: row.status for kind, row in KINDS.items()} == {
        "InvalidRequest": 400,
        "Unauthorized": 401,
        "Forbidden": 403,
        "ModelNotFound": 404,
        "JobNotFound": 404,
        "FileNotFound": 404,
        "BatchNotFound": 404,
        "BatchEnded": 409,
        "IdempotencyConflict": 409,
        "JobNotReady": 409,
        "RequestTooLarge": 413,
        "RangeNotSatisfiable": 416,
        "TryLater": 429,
        "InputFailed": 500,
        "NotInTime": 503,
        "LedgerUnavailable": 503,
        "ResultStoreUnavailable": 503,
        "VectorApiError": 500,
    }


def test_full_backlog_passes_its_time_on(app: Flask) -> None:
    def fail() -> None:
        raise errors.BacklogFull("full", retry_after_seconds=17)

    answer = raised_by(app, fail).get("/boom")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "17")


def test_unexpected_error_is_logged_with_its_stack_but_no_message(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise RuntimeError(f"{'secret'} detail")  # so that the line of the traceback does not show it

    with caplog.at_level(logging.ERROR):
        answer = raised_by(app, fail).get("/boom", headers={"x-request-id": "r-1"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    error = answer.get_json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "r-1" in error["message"]
    assert "Withheld: RuntimeError, whose message may quote a text" in caplog.text
    assert "in fail" in caplog.text
    assert "secret detail" not in caplog.text
    assert "r-1" in caplog.text


def test_what_redis_said_stays_in_the_log(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        try:
            raise redis.ConnectionError("no route to 10.1.2.3")
        except redis.RedisError as error:
            raise errors.LedgerUnavailable(f"Redis: {error}") from error

    with caplog.at_level(logging.WARNING):
        answer = raised_by(app, fail).get("/boom")
    assert answer.status_code == 503
    assert "10.1.2.3" not in answer.text
    assert "10.1.2.3" in caplog.text


@pytest.mark.parametrize("times", [1, 2], ids=["once", "and again for the answer that says so"])
def test_what_fails_after_a_view_is_logged_without_its_message(app: Flask, caplog: pytest.LogCaptureFixture, times: int) -> None:
    text = "".join(["a", " ", "text"])  # which the lines of this file do not show
    failures = [ValueError(text)] * times

    @app.after_request
    def fail(answer: Response) -> Response:
        if failures:
            raise failures.pop()
        return answer

    answer = app.test_client().get("/v1/%0anew%20line")
    assert answer.status_code in (404, 500)
    logged = [JsonLines("api").format(record) for record in caplog.records]
    assert sum("ValueError, whose message may" in line for line in logged) == times
    assert not any(text in line.replace("quote a text", "") or "\\nnew" in line for line in logged)
