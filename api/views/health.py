"""Whether the process and the service are well."""

from flask import Blueprint, Response, request

from api.answers import json_answer
from api.openapi import Answer, describes
from api.queries import Query
from api.records import Alive, Index, Ready
from api.services import services

views = Blueprint("health", __name__)


@views.get("/v1")
@describes({200: Answer("What is here.", Index)})
def index() -> Response:
    """Where things are."""
    links = {
        "dashboard": "/",
        "jobs": "/v1/jobs",
        "embeddings": "/v1/embeddings",
        "files": "/v1/files",
        "batches": "/v1/batches",
        "models": "/v1/models",
        "queues": "/v1/queues",
        "health": "/healthz",
        "ready": "/readyz",
        "metrics": "/metrics",
        "docs": "/docs",
        "openapi": "/openapi.json",
    }
    return json_answer({"name": "vector-api", "model": services().models.default.name, "links": links})


@views.get("/healthz")
@describes({200: Answer("It does.", Alive)})
def healthz() -> Response:
    """Whether the process answers; nothing else is asked."""
    return json_answer({"status": "ok"})


@views.get("/readyz")
@describes({200: Answer("It is.", Ready)})
def readyz() -> Response:
    """Whether Redis is reachable, and who works on what.

    No worker is no error: jobs are accepted and wait.
    """
    Query(request.args, ())
    served, workers = services().models, services().ledger.workers()
    queues = {name: [worker.name for worker in workers if name in worker.queues] for name in served.queues}
    models = {model.name: "live" if any(queues[name] for name in model.queues) else "no worker" for model in served.all}
    return json_answer({"status": "ready", "redis": "ok", "queues": queues, "models": models})
