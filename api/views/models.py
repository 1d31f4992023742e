"""The models that are served, in OpenAI's shape."""

from flask import Blueprint, Response, request

from api.answers import json_answer
from api.queries import Query
from api.schemas import model_record
from api.services import services
from core.errors import ModelNotFound

views = Blueprint("models", __name__, url_prefix="/v1/models")


@views.get("")
def list_models() -> Response:
    Query(request.args, ())
    found = services()
    data = [model_record(model, found.workers.of(model)) for model in found.models.all]
    return json_answer({"object": "list", "data": data})


@views.get("/<path:name>")
def show(name: str) -> Response:
    """A model by its full name, which may have slashes, or by its alias."""
    Query(request.args, ())
    models = services().models
    try:
        model = models.find(name)
    except ModelNotFound:
        if f"/{name}" not in models:  # two slashes in a row, before a folder, become one on their way here
            raise
        model = models.find(f"/{name}")
    return json_answer(model_record(model, services().workers.of(model)))
