"""What can go wrong, one tree:

VectorApiError
├── BadSetting          the URL or the key cannot be used
├── BadInput            an input that no service would take; nothing was sent
├── TimedOut            the call's own `timeout_seconds` is over; the job goes on
├── InputsFailed        `embed` has no vector for some of the texts
├── Unavailable         nobody answers, or the service cannot just now (502, 503, 504); tried again for `retry_seconds`
└── Refused             the service answered and will not do it
    ├── RequestRefused  something is wrong with the request (400 and others); `param` names the field
    ├── Unauthorized    no API key, or an unknown one (401, 403)
    ├── NotFound        no such job, of this key; it may have expired (404)
    ├── Conflict        an idempotency key was used before for something else, or the result is not there yet (409)
    ├── TooLarge        over a limit of the service (413)
    ├── ServiceFailed   an error of the service itself (500)
    └── TryLater        too much was sent in a minute (429); tried again for `retry_seconds`
        └── BacklogFull too much waits already
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vector_api_client.records import JobResult


class VectorApiError(Exception):
    """Base of every error of this package."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BadSetting(VectorApiError):
    pass


class BadInput(VectorApiError):
    pass


class TimedOut(VectorApiError):
    pass


class InputsFailed(VectorApiError):
    """`result` holds the vectors there are, and says why the others are missing."""

    def __init__(self, message: str, result: "JobResult") -> None:
        super().__init__(message)
        self.result = result


class Unavailable(VectorApiError):
    """`retry_after_seconds` is what the service asked for, if it answered."""

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Refused(VectorApiError):
    """`status`, `code` and `param` are the service's own; `request_id` finds the request in its log."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.request_id = request_id
        self.retry_after_seconds = retry_after_seconds


class RequestRefused(Refused):
    pass


class Unauthorized(Refused):
    pass


class NotFound(Refused):
    pass


class Conflict(Refused):
    pass


class TooLarge(Refused):
    pass


class ServiceFailed(Refused):
    pass


class TryLater(Refused):
    pass


class BacklogFull(TryLater):
    pass
