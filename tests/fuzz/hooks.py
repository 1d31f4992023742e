"""What schemathesis must be told about this API, beside its description. It loads this by the name in SCHEMATHESIS_HOOKS.

`FUZZ_JOBS` holds ids of jobs in every state, separated by spaces: every other request for a job asks for one of them.
`FUZZ_ENDED_JOBS` holds those that have ended.
"""

import json
import os
import zlib
from typing import Any

import schemathesis

from api.queries import MOST_SECONDS_WAIT
from core.config import DEFAULT_MODEL

NDJSON = "application/x-ndjson"
JOBS = os.environ.get("FUZZ_JOBS", "").split()
ENDED = os.environ.get("FUZZ_ENDED_JOBS", "").split()
LONGEST_WAIT = 0.05


@schemathesis.serializer(NDJSON)
def write_lines(_context: Any, value: Any) -> Any:
    items = value if isinstance(value, list) else [value]
    return value if isinstance(value, bytes) else b"".join(json.dumps(item).encode() + b"\n" for item in items)


@schemathesis.deserializer(NDJSON)
def read_lines(_context: Any, answer: Any) -> Any:
    return [json.loads(line) for line in answer.content.splitlines()]


@schemathesis.hook
def before_call(_context: Any, case: Any, _options: Any) -> None:
    query = case.query
    if is_long(query.get("wait")):
        query["wait"] = LONGEST_WAIT  # each wait would hold up the run
    if case.operation.label == "POST /v1/jobs" and case.media_type == "application/json":
        for name in set(query) - {"wait"}:  # only a stream has its options there, which a description cannot say
            del query[name]
    if case.operation.label == "GET /v1/models/{name}" and zlib.crc32(str(case.path_parameters).encode()) % 2:
        case.path_parameters["name"] = DEFAULT_MODEL
    if case.operation.label.endswith("/events"):  # only those that end
        number = zlib.crc32(str(case.path_parameters).encode())
        case.path_parameters["job_id"] = ENDED[number % len(ENDED)] if ENDED and number % 2 else "job_0"
        return
    job = (case.path_parameters or {}).get("job_id")
    if JOBS and isinstance(job, str) and (number := zlib.crc32(job.encode())) % 2:
        case.path_parameters["job_id"] = JOBS[number // 2 % len(JOBS)]


def is_long(wait: Any) -> bool:
    """Whether a request would be held, and not refused, for longer than wanted."""
    try:
        return LONGEST_WAIT < float(wait) <= MOST_SECONDS_WAIT
    except (TypeError, ValueError):
        return False
