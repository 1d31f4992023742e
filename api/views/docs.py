"""The API's description, for programs and for people.

The page is made here, from the same document, without a script: a viewer such as Swagger UI or Redoc brings more than a megabyte
of JavaScript, and styles in the page that a strict Content-Security-Policy forbids.
"""

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from flask import Blueprint, Flask, Response, current_app, render_template
from markupsafe import Markup, escape

from api.answers import json_answer
from api.openapi import Answer, describes, document
from api.services import services

views = Blueprint("docs", __name__)

STYLE = Path(__file__).parents[1] / "templates" / "docs.css"
POLICY = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

LIMITS = [
    ("minimum", "at least {}"),
    ("maximum", "at most {}"),
    ("minLength", "at least {} characters"),
    ("maxLength", "at most {} characters"),
    ("minItems", "at least {} items"),
    ("maxItems", "at most {} items"),
    ("pattern", "matches {}"),
]
"""Keywords of JSON schema, in words."""


@views.get("/openapi.json")
@describes({200: Answer("An OpenAPI document.", dict[str, Any])})
def description() -> Response:
    """This description, in OpenAPI 3.1."""
    return json_answer(_document(current_app._get_current_object()))  # type: ignore[attr-defined]


@views.get("/docs")
@describes({200: Answer("A page of HTML.", {"text/html": str})})
def page() -> Response:
    """This description, as a page."""
    found = _document(current_app._get_current_object())  # type: ignore[attr-defined]
    answer = Response(render_template("docs.html", document=found, limits=LIMITS), mimetype="text/html")
    answer.headers["Content-Security-Policy"] = POLICY
    return answer


@views.get("/docs.css")
@describes({200: Answer("A style sheet.", {"text/css": str})})
def style() -> Response:
    """How the page looks."""
    return Response(STYLE.read_bytes(), mimetype="text/css")


@views.app_template_filter("with_code")
def with_code(text: str) -> Markup:
    """Plain text with `words in backquotes`, as HTML."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


@lru_cache(maxsize=1)
def _document(app: Flask) -> dict[str, Any]:
    return document(app, services().settings)
