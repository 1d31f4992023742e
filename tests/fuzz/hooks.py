"""What schemathesis must be told about this API, beside its description. It loads this by the name in SCHEMATHESIS_HOOKS.

`FUZZ_IDS` is a JSON object of ids that exist, by the names of path parameters: every other request asks for one of them.
`ended_job_id` are those of jobs that have ended.
"""

import json
import os
import zlib
from typing import Any

import schemathesis

from api.queries import MOST_SECONDS_WAIT

NDJSON = "application/x-ndjson"
IDS: dict[str, list[str]] = json.loads(os.environ.get("FUZZ_IDS", "{}"))
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
        for name in set(query) - {"wait", "dry_run"}:  # only a stream has its options there, which a description cannot say
            del query[name]
    parameters = case.path_parameters or {}
    if case.operation.label.endswith("/events"):  # only those that end
        parameters["job_id"] = known("ended_job_id", parameters["job_id"]) or "job_0"
        return
    for name, value in parameters.items():
        parameters[name] = known(name, value) or value
    if case.operation.label == "POST /v1/embeddings" and isinstance(case.body, dict) and "model" in case.body:
        case.body["model"] = known("name", case.body["model"]) or case.body["model"]
    if case.operation.label == "POST /v1/batches" and isinstance(case.body, dict) and "input_file_id" in case.body:
        case.body["input_file_id"] = known("file_id", case.body["input_file_id"]) or case.body["input_file_id"]


def known(name: str, value: Any) -> str | None:
    """Instead of the value, for every other one."""
    number = zlib.crc32(str(value).encode())
    found = IDS.get(name, []) if isinstance(value, str) and number % 2 else []
    return found[number // 2 % len(found)] if found else None


def is_long(wait: Any) -> bool:
    """Whether a request would be held, and not refused, for longer than wanted."""
    try:
        return LONGEST_WAIT < float(wait) <= MOST_SECONDS_WAIT
    except (TypeError, ValueError):
        return False
