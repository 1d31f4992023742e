"""`celery -A worker inspect device|model|batches|ledger`: what the parent answers while its child works.

The facts come from the worker's own report in the ledger: the parent knows nothing of torch.
"""

import time
from collections.abc import Callable
from typing import Any

from celery.worker.control import inspect_command

from core.errors import LedgerUnavailable
from core.ledger import BUCKET_SECONDS
from worker import app, lifecycle

DEVICE_FACTS = ("device", "device_name", "dtype", "state")
MODEL_FACTS = ("model", "revision", "engine", "dtype", "parity", "dimensions", "max_tokens", "prompts")
BATCH_FACTS = (
    "batches",
    "inputs",
    "cached",
    "tokens",
    "padding_share",
    "tokens_per_second",
    "budget_tokens",
    "out_of_memory",
    "last_batch",
)


def _reports() -> dict[str, dict[str, Any]]:
    ledger = lifecycle.open_ledger(2.0, 0)
    return {worker.name: vars(worker) for worker in ledger.workers() if worker.name.split("/")[0] == lifecycle.node_name()}


def _answer(chosen: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """What is chosen from the report of each child."""
    try:
        reports = _reports()
    except LedgerUnavailable as error:
        return {"error": error.message}
    if not reports:
        return {"error": "this worker has not loaded its model yet, or has lost its child"}
    return {name: chosen(report) for name, report in reports.items()}


@inspect_command()
def device(state: Any) -> dict[str, Any]:
    """Device, dtype, memory and figures of this worker."""
    return _answer(lambda report: {fact: report[fact] for fact in DEVICE_FACTS} | report["facts"])


@inspect_command()
def model(state: Any) -> dict[str, Any]:
    """The model this worker holds."""
    return _answer(lambda report: {fact: report[fact] for fact in MODEL_FACTS})


@inspect_command()
def batches(state: Any) -> dict[str, Any]:
    """How this worker's batches were, and the last one; how long its stages took. Padding is a share of all tokens with it."""
    return _answer(_batches)


def _mean(found: dict[str, Any]) -> dict[str, float]:
    """How many values a histogram of the report has, and their mean."""
    count = found["counts"][-1]
    return {"count": count, "mean": round(found["sum"] / count, 6) if count else 0.0}


def _batches(report: dict[str, Any]) -> dict[str, Any]:
    found = {fact: report["facts"][fact] for fact in BATCH_FACTS}
    if last := found["last_batch"]:
        age = max(0.0, time.time() - last["ended_at"])  # parent and child share a clock
        found["last_batch"] = {fact: value for fact, value in last.items() if fact != "ended_at"} | {"age_seconds": round(age, 1)}
    histograms = dict(report["histograms"])
    times = {
        name: {label: _mean(values) for label, values in histograms.pop(name, {}).items()}
        for name in ("wait_seconds", "stage_seconds")
    }
    return found | times | {name: _mean(values) for name, values in histograms.items()}


@inspect_command()
def ledger(state: Any) -> dict[str, Any]:
    """What waits and runs in this worker's queues; of all queues the jobs by state, the counters, and the throughput."""
    try:
        survey = lifecycle.open_ledger(2.0, 0).survey(app.amqp.queues.consume_from)
    except LedgerUnavailable as error:
        return {"error": error.message}
    queues = {
        found.name: {
            "waiting": found.waiting,
            "running": found.running_by_lane,
            "suspects": found.suspects,
            "oldest_seconds": found.oldest_by_lane,
            "workers": [worker.name for worker in found.workers],
        }
        for found in survey.queues
    }
    return queues | {
        "totals": {
            "jobs": survey.jobs,
            "kept_jobs": survey.kept_jobs,
            "counters": survey.counters,
            "throughput": {"seconds_each": BUCKET_SECONDS, "inputs": survey.throughput},
        }
    }
