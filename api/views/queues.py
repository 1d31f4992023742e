"""What waits, what runs, and who works."""

from flask import Blueprint, Response, request

from api.answers import json_answer
from api.openapi import Answer, describes
from api.queries import Query
from api.records import QueueList
from api.schemas import queue_record
from api.services import services
from core.routing import QUEUES, auto_shares

views = Blueprint("queues", __name__)


@views.get("/v1/queues")
@describes({200: Answer("All queues.", QueueList)})
def list_queues() -> Response:
    """What waits and runs, on which devices, and which share of the `auto` jobs goes where."""
    Query(request.args, ())
    found = services()
    states = found.ledger.queue_states(QUEUES)
    totals = {
        "waiting": sum(sum(state.waiting.values()) for state in states),
        "max_waiting": found.settings.max_waiting_inputs,
        "running": sum(state.running for state in states),
        "workers": len({worker.name for state in states for worker in state.workers}),
        "counters": found.ledger.counters(),
    }
    live = {state.name for state in states if state.workers}
    shares, reason = auto_shares(live_queues=live, gpu_share=found.settings.gpu_share)
    data = [queue_record(state, auto_share=shares[state.name], auto_share_reason=reason) for state in states]
    return json_answer({"object": "list", "data": data, "totals": totals})
