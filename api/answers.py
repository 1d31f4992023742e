"""Answers that are not errors."""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson
from flask import Response

JSON = "application/json"

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
"""Of every answer: a browser runs, frames, passes on and keeps nothing of it. A view that shows a page sets its own."""


def add_security_headers(answer: Response) -> Response:
    for name, value in SECURITY_HEADERS.items():
        answer.headers.setdefault(name, value)
    return answer


def json_answer(payload: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(payload), status, headers, mimetype=JSON)


def streamed(pieces: Iterator[bytes], media_type: str, headers: Mapping[str, str] | None = None, status: int = 200) -> Response:
    """An answer that is sent as it is made. An error in the middle cuts the connection, so that no client takes it for whole."""
    return Response(pieces, status, headers, content_type=media_type)
