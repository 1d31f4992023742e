"""`celery -A worker inspect device|model|ledger`: what the parent answers while its child works.

The facts come from the worker's own report in the ledger: the parent knows nothing of torch.
"""

from typing import Any

from celery.worker.control import inspect_command

from core.errors import LedgerUnavailable
from worker import app, lifecycle

DEVICE_FACTS = ("device", "dtype", "state")
MODEL_FACTS = ("model", "revision", "engine", "dtype", "dimensions", "max_tokens", "prompts")


def _reports() -> dict[str, dict[str, Any]]:
    ledger = lifecycle.open_ledger(2.0, 0)
    return {worker.name: vars(worker) for worker in ledger.workers() if worker.name.split("/")[0] == lifecycle.node_name()}


def _answer(names: tuple[str, ...], *, with_facts: bool) -> dict[str, Any]:
    try:
        reports = _reports()
    except LedgerUnavailable as error:
        return {"error": error.message}
    if not reports:
        return {"error": "this worker has not loaded its model yet, or has lost its child"}
    answer = {}
    for name, report in reports.items():
        answer[name] = {fact: report[fact] for fact in names} | (report["facts"] if with_facts else {})
    return answer


@inspect_command()
def device(state: Any) -> dict[str, Any]:
    """Device, dtype, memory and figures of this worker."""
    return _answer(DEVICE_FACTS, with_facts=True)


@inspect_command()
def model(state: Any) -> dict[str, Any]:
    """The model this worker holds."""
    return _answer(MODEL_FACTS, with_facts=False)


@inspect_command()
def ledger(state: Any) -> dict[str, Any]:
    """What waits and runs in this worker's queues."""
    try:
        states = lifecycle.open_ledger(2.0, 0).queue_states(app.amqp.queues.consume_from)
    except LedgerUnavailable as error:
        return {"error": error.message}
    return {
        found.name: {
            "waiting": found.waiting,
            "running": found.running,
            "suspects": found.suspects,
            "oldest_seconds": found.oldest_seconds,
            "workers": [worker.name for worker in found.workers],
        }
        for found in states
    }
