"""Whether the process and the service are well."""

from flask import Blueprint, Response, request

from api.answers import json_answer
from api.queries import Query
from api.services import services
from core.routing import QUEUES

views = Blueprint("health", __name__)


@views.get("/")
def index() -> Response:
    links = {"jobs": "/v1/jobs", "embeddings": "/v1/embeddings", "queues": "/v1/queues", "health": "/healthz", "ready": "/readyz"}
    return json_answer({"name": "vector-api", "model": services().settings.model_name, "links": links})


@views.get("/healthz")
def healthz() -> Response:
    """The process answers; nothing else is asked."""
    return json_answer({"status": "ok"})


@views.get("/readyz")
def readyz() -> Response:
    """Redis is reachable, and who works on what. No worker is no error: jobs are accepted and wait."""
    Query(request.args, ())
    workers = services().ledger.workers()
    queues = {name: [worker.name for worker in workers if name in worker.queues] for name in QUEUES}
    return json_answer({"status": "ready", "redis": "ok", "queues": queues})
