"""The dashboard: a page that shows what `/v1` tells, and lets texts be tried.

The page and its files hold nothing of the service's data, so they need no key; the page asks for one, keeps it in its tab, and
sends it with its requests. Its policy lets it load and reach this service alone, and no style or script stands in the page.
"""

from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from flask import Blueprint, Response, request
from pydantic import Field
from werkzeug.exceptions import NotFound

from api.openapi import Answer, describes

views = Blueprint("dashboard", __name__)

FOLDER = Path(__file__).parents[1] / "dashboard"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; font-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
MEDIA_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}

Name = Literal[
    "app.js",
    "dashboard.css",
    "dom.js",
    "explore.js",
    "format.js",
    "icon.svg",
    "job.js",
    "jobs.js",
    "map.js",
    "overview.js",
    "refresh.js",
    "samples.js",
    "service.js",
    "theme.js",
    "try.js",
    "vectors.js",
]
FileName = Annotated[Name, Field(description="One of the page's files.")]
NAMES = get_args(Name)

TAGGED = {"ETag": str}
UNCHANGED = Answer("The browser has it already.", headers=TAGGED)


@views.get("/")
@describes(
    {200: Answer("A page of HTML.", {"text/html": str}, TAGGED), 304: UNCHANGED},
    headers={"If-None-Match": str},
)
def page() -> Response:
    """The dashboard: queues, workers, jobs, and a place to try texts."""
    return _answer("index.html")


@views.get("/dashboard/<name>")
@describes(
    {200: Answer("A script, a style sheet or a picture.", dict.fromkeys(MEDIA_TYPES.values(), Any), TAGGED), 304: UNCHANGED},
    headers={"If-None-Match": str},
    errors=(NotFound,),
)
def file(name: FileName) -> Response:
    """A file of the dashboard."""
    if name not in NAMES:
        raise NotFound
    return _answer(name)


def _answer(name: str) -> Response:
    """The file, or 304. A browser keeps it and asks each time whether it has changed: an upgrade shows at once."""
    content, etag = _read(name)
    answer = Response(content, content_type=f"{MEDIA_TYPES[Path(name).suffix]}; charset=utf-8")
    answer.headers["Content-Security-Policy"] = POLICY
    answer.headers["Cache-Control"] = "no-cache"
    answer.set_etag(etag)
    answer.make_conditional(request)
    return answer


@cache
def _read(name: str) -> tuple[bytes, str]:
    content = (FOLDER / name).read_bytes()
    return content, sha256(content).hexdigest()[:32]
