"""What Prometheus reads."""

from flask import Blueprint, Response, request

from api.metrics import CONTENT_TYPE
from api.openapi import Answer, describes
from api.queries import Query
from api.services import services

views = Blueprint("metrics", __name__)


@views.get("/metrics")
@describes({200: Answer("The metrics, in Prometheus' text format.", {"text/plain": str})})
def show() -> Response:
    """Read all figures, for Prometheus.

    While Redis cannot be reached this is answered all the same, with `vector_api_redis_up 0` and what the process itself knows.
    """
    Query(request.args, ())
    return Response(services().metrics.exposition(), content_type=CONTENT_TYPE)
