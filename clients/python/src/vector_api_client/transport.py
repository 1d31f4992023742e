"""Requests over HTTP, repeated while that can help: none of them does harm when it is done twice. Errors of httpx end here."""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson

from vector_api_client.errors import (
    BacklogFull,
    BadSetting,
    Conflict,
    NotFound,
    Refused,
    RequestRefused,
    ServiceFailed,
    TimedOut,
    TooLarge,
    TryLater,
    Unauthorized,
    Unavailable,
    VectorApiError,
)

MOST_SECONDS_HELD = 30
"""The longest `?wait=` that the service takes."""

TIMEOUT = httpx.Timeout(60, connect=10, read=MOST_SECONDS_HELD + 45)
"""How long a connection may stay silent; not how long a request may take."""

MOST_SECONDS_PAUSE = 120.0
FIRST_PAUSE, LARGEST_PAUSE = 0.5, 20.0

REFUSALS: dict[int, type[Refused]] = {
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    429: TryLater,
}

OnRetry = Callable[[VectorApiError, float], None]
Body = Callable[[], Iterator[bytes]]


class Deadline:
    """A point in time, or none: when `seconds` is None."""

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float:
        return float("inf") if self._end is None else self._end - time.monotonic()

    def check(self) -> None:
        """Raises TimedOut when it is over."""
        if self.left() <= 0:
            raise self.over()

    def over(self) -> TimedOut:
        return TimedOut(f"not done within {self._seconds:g} s; the job goes on")


class Transport:
    """Requests to one service.

    Args:
        retry_seconds: how long a request is tried again, from its first failure on.
        on_retry: gets the error and the seconds of the pause before each new try.
    """

    def __init__(self, base_url: str, api_key: str | None, *, retry_seconds: float, on_retry: OnRetry) -> None:
        self.base_url = checked_url(base_url)
        headers = {"User-Agent": "vector-api-client"}
        if api_key:
            if not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
                raise BadSetting("the API key has characters that no key has: spaces, line ends or others than ASCII")
            headers["Authorization"] = f"Bearer {api_key}"
        self._http = httpx.Client(base_url=self.base_url, headers=headers, timeout=TIMEOUT)
        self._retry_seconds = retry_seconds
        self._on_retry = on_retry

    def json(self, method: str, path: str, **request: Any) -> Any:
        """The JSON of the answer. Arguments and errors are those of `request`."""
        answer = self.request(method, path, **request)
        try:
            return orjson.loads(answer.content)
        except orjson.JSONDecodeError:
            raise RequestRefused(
                f"{self.base_url}{path} did not answer with JSON: is it a vector-api?", status=answer.status_code
            ) from None

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
        deadline: Deadline | None = None,
    ) -> httpx.Response:
        """The answer, when it is a success.

        Args:
            body: yields the body from its start, each time it is called.

        Raises:
            Unavailable: nobody answers, or the service cannot do it now.
            Refused: or a kind of it: what the service says against it.
            TimedOut: the deadline came first.
        """
        deadline = deadline or Deadline()
        give_up_at, tries = None, 0
        while True:
            deadline.check()
            try:
                return self._once(method, path, params, body, headers, deadline)
            except (Unavailable, TryLater) as error:
                if deadline.left() <= 0:
                    raise deadline.over() from error
                give_up_at = give_up_at or time.monotonic() + self._retry_seconds
                pause = _pause(error.retry_after_seconds, tries)
                if time.monotonic() + pause > give_up_at:
                    raise
                if pause >= deadline.left():
                    raise deadline.over() from error
                self._on_retry(error, pause)
                time.sleep(pause)
                tries += 1

    def _once(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any] | None,
        body: Body | None,
        headers: Mapping[str, str] | None,
        deadline: Deadline,
    ) -> httpx.Response:
        content = body and _until(deadline, body())
        timeout = _silence(deadline.left())
        try:
            answer = self._http.request(method, path, params=params, content=content, headers=headers, timeout=timeout)
        except httpx.TransportError as error:
            raise Unavailable(f"{self.base_url} does not answer ({_reason(error)})") from error
        if not answer.is_success:
            raise _error(answer, self.base_url)
        return answer

    def close(self) -> None:
        self._http.close()


def checked_url(url: str) -> str:
    """The URL without a slash at its end.

    Raises:
        BadSetting: it is not one of a service.
    """
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadSetting(f"the service's URL must be like http://127.0.0.1:8000, got {url!r}")
    return url.strip().rstrip("/")


def _until(deadline: Deadline, pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        deadline.check()
        yield piece


def _silence(left: float) -> httpx.Timeout:
    """`TIMEOUT`, and nothing in it longer than what is left."""
    return httpx.Timeout(**{kind: max(0.001, min(seconds or left, left)) for kind, seconds in TIMEOUT.as_dict().items()})


def _pause(asked: float | None, tries: int) -> float:
    if asked is not None:
        return min(asked, MOST_SECONDS_PAUSE) + random.uniform(0, 0.1)
    return min(LARGEST_PAUSE, FIRST_PAUSE * 2.0**tries) * random.uniform(0.5, 1)


def _reason(error: httpx.TransportError) -> str:
    said = str(error).strip()
    return said.removeprefix("[Errno ").partition("] ")[2] or said or type(error).__name__


def _error(answer: httpx.Response, base_url: str) -> VectorApiError:
    """The error that an answer stands for."""
    try:
        told = answer.json()["error"]
        message, code, param = str(told["message"]), told.get("code"), told.get("param")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, code, param = f"{base_url} answered {answer.status_code}, and not as a vector-api does", None, None
    retry_after = _retry_after(answer.headers.get("Retry-After"))
    status = answer.status_code
    if status in (502, 503, 504):
        return Unavailable(message, retry_after_seconds=retry_after)
    kind = REFUSALS.get(status, ServiceFailed if status >= 500 else RequestRefused)
    if kind is TryLater and code == "backlog_full":
        kind = BacklogFull
    return kind(
        message,
        status=status,
        code=code,
        param=param,
        request_id=answer.headers.get("x-request-id"),
        retry_after_seconds=retry_after,
    )


def _retry_after(header: str | None) -> float | None:
    """Seconds. The header may be a date instead, which our service never sends; then it counts as absent."""
    try:
        return max(0.0, float(header)) if header else None
    except ValueError:
        return None
