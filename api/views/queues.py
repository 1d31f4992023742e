"""What waits, what runs, and who works."""

from flask import Blueprint, Response, request

from api.answers import json_answer
from api.openapi import Answer, describes
from api.queries import Query
from api.records import QueueList, QueueRecord
from api.schemas import queue_record
from api.services import services
from core.ledger import BUCKET_SECONDS, QueueState
from core.models import Model
from core.routing import QUEUES, auto_shares

views = Blueprint("queues", __name__)


@views.get("/v1/queues")
@describes({200: Answer("All queues.", QueueList)})
def list_queues() -> Response:
    """What waits and runs, on which devices, and which share of the `auto` jobs goes where."""
    Query(request.args, ())
    found = services()
    survey = found.ledger.survey(found.models.queues)
    redis_used_bytes, redis_max_bytes = found.ledger.memory()
    states = survey.queues
    totals = {
        "waiting": sum(sum(state.waiting.values()) for state in states),
        "max_waiting": found.settings.max_waiting_inputs,
        "waiting_bytes": survey.waiting_bytes,
        "max_waiting_bytes": found.settings.max_waiting_bytes,
        "redis_used_bytes": redis_used_bytes,
        "redis_max_bytes": redis_max_bytes,
        "running": sum(state.running for state in states),
        "workers": len({worker.name for state in states for worker in state.workers}),
        "jobs": survey.jobs,
        "counters": survey.counters,
        "throughput": {"seconds_each": BUCKET_SECONDS, "inputs": survey.throughput},
    }
    by_name = {state.name: state for state in states}
    data = [record for model in found.models.all for record in _records(model, by_name, found.settings.gpu_share)]
    return json_answer({"object": "list", "data": data, "totals": totals})


def _records(model: Model, states: dict[str, QueueState], gpu_share: float) -> list[QueueRecord]:
    """The queues of one model, and which share of its `auto` jobs goes to each."""
    live = [queue for queue in QUEUES if states[model.queue(queue)].workers]
    shares, reason = auto_shares(live_queues=live, gpu_share=gpu_share)
    return [
        queue_record(states[model.queue(queue)], model, auto_share=shares[queue], auto_share_reason=reason) for queue in QUEUES
    ]
