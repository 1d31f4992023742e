"""The errors of the service, one tree:

    VectorApiError
    ├── InvalidSetting          an environment variable has a bad value; the process stops at start
    ├── InvalidRequest          the client sent something that cannot be done (400)
    │   ├── ModelNotFound       no model of this name is served (404)
    │   ├── JobNotFound         no such job, or it has expired (404)
    │   ├── FileNotFound        no such file, or it has expired (404)
    │   ├── BatchNotFound       no such batch, or it has expired (404)
    │   ├── BatchEnded          it can no longer be cancelled (409)
    │   ├── IdempotencyConflict the key was used before with another body (409)
    │   ├── RequestTooLarge     the body is over its limit (413)
    │   ├── RangeNotSatisfiable the part that is asked for begins behind the end (416)
    │   └── JobNotReady         the result cannot be given yet (409)
    ├── Unauthorized            no API key, or an unknown one (401)
    ├── Forbidden               the API key is for something else (403)
    ├── TryLater                what may be done some seconds later (429)
    │   ├── BacklogFull         too much waits already, of all or of this tenant
    │   ├── FilesFull           the files that were sent take too much already
    │   ├── RateLimited         the tenant has used up what it may in a minute
    │   └── PlacesFull          as many requests of this kind are being answered as the process has places for
    ├── NotInTime               the vectors did not come while a request could wait for them (503)
    ├── InputFailed             an input has no vector, for no fault of its client (500)
    ├── LedgerUnavailable       Redis cannot be reached or refuses writes (503)
    │   └── NewerLayout         it holds the ledger of a newer version, which this one must not touch
    ├── ResultStoreUnavailable  the place of RESULT_STORE fails (503)
    │   └── ResultStoreRefuses  it will fail again: no such folder or bucket, no permission; a worker stops at start
    ├── UnreadableBlock         what lies in Redis was written by another version, or is damaged (500); a shard's inputs fail
    ├── ResultLost              the result store no longer has, or has damaged, what the ledger refers to (500)
    └── EngineError             what a worker's engine raises
        ├── ModelUnavailable    the model or the device cannot be had; the worker stops at start
        ├── OutOfMemory         the device is full; the worker retries with a smaller batch
        └── DeviceLost          the device failed and this process cannot use it again; the worker's process ends

Every request error carries the `param` (field) at fault and a machine-readable `code`. Messages name the field, the limit
and what was sent, never a text. HTTP status lives in `api/errors.py` alone.
"""


class VectorApiError(Exception):
    """Base of every error this service raises on purpose."""

    code: str = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


class InvalidSetting(VectorApiError):
    code = "invalid_setting"


class InvalidRequest(VectorApiError):
    code = "invalid_request"


class ModelNotFound(InvalidRequest):
    code = "model_not_found"


class JobNotFound(InvalidRequest):
    code = "job_not_found"


class FileNotFound(InvalidRequest):
    code = "file_not_found"


class BatchNotFound(InvalidRequest):
    code = "batch_not_found"


class BatchEnded(InvalidRequest):
    code = "batch_ended"


class IdempotencyConflict(InvalidRequest):
    code = "idempotency_conflict"


class RequestTooLarge(InvalidRequest):
    code = "request_too_large"


class RangeNotSatisfiable(InvalidRequest):
    code = "range_not_satisfiable"

    def __init__(self, message: str, *, param: str | None = None, size_bytes: int = 0) -> None:
        super().__init__(message, param=param)
        self.size_bytes = size_bytes


class JobNotReady(InvalidRequest):
    code = "job_not_ready"


class Unauthorized(VectorApiError):
    code = "invalid_api_key"


class Forbidden(VectorApiError):
    code = "key_only_watches"


class TryLater(VectorApiError):
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class BacklogFull(TryLater):
    code = "backlog_full"


class FilesFull(TryLater):
    code = "files_full"


class RateLimited(TryLater):
    pass


class PlacesFull(TryLater):
    code = "too_many_at_once"


class NotInTime(VectorApiError):
    code = "not_in_time"


class InputFailed(VectorApiError):
    code = "input_failed"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, retryable: bool = False) -> None:
        super().__init__(message, param=param, code=code)
        self.retryable = retryable


class LedgerUnavailable(VectorApiError):
    code = "ledger_unavailable"


class NewerLayout(LedgerUnavailable):
    code = "newer_layout"


class ResultStoreUnavailable(VectorApiError):
    code = "result_store_unavailable"

    def __init__(self, message: str, *, param: str | None = None, store: str = "") -> None:
        super().__init__(message, param=param)
        self.store = store


class ResultStoreRefuses(ResultStoreUnavailable):
    pass


class UnreadableBlock(VectorApiError):
    code = "unreadable_block"


class ResultLost(VectorApiError):
    code = "result_lost"


class EngineError(VectorApiError):
    code = "engine_error"


class ModelUnavailable(EngineError):
    code = "model_unavailable"


class OutOfMemory(EngineError):
    code = "out_of_memory"


class DeviceLost(EngineError):
    code = "device_lost"
