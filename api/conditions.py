"""Partial requests (RFC 9110, section 14): the rest of an answer whose beginning the client has."""

from collections.abc import Mapping
from typing import NamedTuple

from flask import Request

from core.errors import RangeNotSatisfiable


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
