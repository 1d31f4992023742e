"""Conditional and partial requests (RFC 9110, sections 13 and 14): an answer that the client has already, or the rest of one.

Only what belongs to an ended job takes part: nothing about it changes any more, and no id is given out twice.
"""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import orjson
from flask import Request, Response

from core.errors import RangeNotSatisfiable
from core.jobs import Job

FORM = 1
"""Counted up when the bytes of any format change, so that nobody joins two halves of different files."""


def etag_of(job: Job, *form: object) -> str | None:
    """The strong ETag, in its quotes, of an answer about an ended job; None while the job may change.

    Args:
        form: all that decides about the answer's bytes beside the job.
    """
    if not job.status.ended:
        return None
    digest = hashlib.sha256(orjson.dumps([FORM, job.id, job.ended_at, *map(str, form)]))
    return f'"{digest.hexdigest()[:32]}"'


def unchanged(request: Request, etag: str | None) -> Response | None:
    """304 when the client has the answer already."""
    if etag is None or not request.if_none_match.contains_weak(etag.strip('"')):
        return None
    return Response(status=304, headers={"ETag": etag})


class ByteRange(NamedTuple):
    start: int
    stop: int
    size: int

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Content-Range": f"bytes {self.start}-{self.stop - 1}/{self.size}"}


def asked_range(request: Request, etag: str, size_bytes: int) -> ByteRange | None:
    """The part of a file of `size_bytes` that is asked for; None for all of it.

    More than one range at a time, and other units than bytes, are answered with the whole, as RFC 9110 allows.

    Raises:
        RangeNotSatisfiable: it begins behind the file's end.
    """
    asked = request.range
    if request.method != "GET" or asked is None or asked.units != "bytes" or len(asked.ranges) != 1:
        return None
    if request.headers.get("If-Range", etag) != etag:  # compared as they are: a weak one, or a date, is not ours
        return None
    start, stop = asked.ranges[0]
    if start < 0:
        start = max(0, size_bytes + start)
    if start >= size_bytes:
        raise RangeNotSatisfiable(
            f"Range begins at byte {start}, the file has {size_bytes}", param="Range", size_bytes=size_bytes
        )
    return ByteRange(start, size_bytes if stop is None else min(stop, size_bytes), size_bytes)
