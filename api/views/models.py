"""The models that are served, in OpenAI's shape."""

from typing import Annotated

from flask import Blueprint, Response, request
from pydantic import Field

from api.answers import json_answer
from api.openapi import Answer, describes
from api.queries import Query
from api.records import ModelList, ModelRecord
from api.schemas import model_record
from api.services import services
from core.errors import ModelNotFound

views = Blueprint("models", __name__, url_prefix="/v1/models")


ModelName = Annotated[str, Field(description="Its full name, in which slashes need no encoding, or its alias.")]


@views.get("")
@describes({200: Answer("All models.", ModelList)})
def list_models() -> Response:
    """List the models that are served, in OpenAI's shape."""
    Query(request.args, ())
    found = services()
    data = [model_record(model, found.workers.of(model)) for model in found.models.all]
    return json_answer({"object": "list", "data": data})


@views.get("/<path:name>")
@describes({200: Answer("The model.", ModelRecord)}, errors=(ModelNotFound,))
def show(name: ModelName) -> Response:
    """See a model."""
    Query(request.args, ())
    models = services().models
    try:
        model = models.find(name)
    except ModelNotFound:
        if f"/{name}" not in models:  # two slashes in a row, before a folder, become one on their way here
            raise
        model = models.find(f"/{name}")
    return json_answer(model_record(model, services().workers.of(model)))
