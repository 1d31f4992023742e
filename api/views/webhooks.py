"""What became of the events that webhooks were to be told."""

from typing import Annotated

from flask import Blueprint, Response, request
from pydantic import Field
from typing_extensions import TypedDict

from api.answers import json_answer
from api.openapi import Answer, describes
from api.queries import Query
from api.records import DeliveryList, DeliveryRecord
from api.services import services, tenant_of
from api.webhooks import event_of
from core.ledger import Delivery

views = Blueprint("webhooks", __name__, url_prefix="/v1/webhooks")

MOST_LISTED = 1000


class DeliveryQuery(TypedDict, total=False):
    limit: Annotated[int, Field(ge=1, le=MOST_LISTED)]


@views.get("/deliveries")
@describes({200: Answer("The last deliveries.", DeliveryList)}, query=(DeliveryQuery,))
def list_deliveries() -> Response:
    """List what webhooks were told, newest first.

    Of each event and target: how often it was tried, what the last answer was, and when it is tried again. The last 1,000 of the
    last seven days.
    """
    query = Query(request.args, DeliveryQuery.__annotations__)
    limit = query.whole("limit", 100, minimum=1, maximum=MOST_LISTED)
    found = services().webhooks.deliveries.latest(tenant_of(request), limit)
    return json_answer({"object": "list", "data": [delivery_record(delivery) for delivery in found]})


def delivery_record(delivery: Delivery) -> DeliveryRecord:
    """A delivery as its tenant sees it: of the target no more than its host."""
    status = int(delivery.answer) if delivery.answer.isdigit() else None
    return {
        "object": "webhook.delivery",
        "event": event_of(delivery),
        "target": delivery.target.partition("#")[0],
        "state": delivery.state,
        "tries": delivery.tries,
        "status": status,
        "error": delivery.answer if delivery.answer and status is None else None,
        "next_try_at": delivery.next_try_at,
        "ended_at": delivery.ended_at,
    }
