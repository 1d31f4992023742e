"""Read a request's body: in pieces, within a limit, and to its true end.

A body that stops early must never be taken for a whole one. Chunked bodies say where they end, and the server raises when they
do not; a body with a Content-Length just comes out shorter (the server declares `wsgi.input_terminated`, so Werkzeug does not
count), therefore we count.
"""

import hashlib
import select
import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

from flask import Request
from werkzeug.exceptions import HTTPException, RequestTimeout

from core.errors import Forbidden, InvalidRequest, LedgerUnavailable, RequestTooLarge, Unauthorized, VectorApiError

PIECE_BYTES = 65_536

STALLED_SECONDS = 60.0
"""How long a client may neither send nor take a byte before it loses its connection, and with it one of our threads."""

MOST_DISCARDED_BYTES = 64 * 2**20
MOST_DISCARD_SECONDS = 5.0


class Body:
    """The body of a request, read once.

    Args:
        limit_bytes: most bytes taken.
        setting: the setting that holds the limit, for the message.
        digest_head: what the body's digest starts with, so that the same bytes with other options differ.
    """

    def __init__(self, request: Request, *, limit_bytes: int, setting: str, digest_head: bytes = b"") -> None:
        self._stream: IO[bytes] = request.stream
        self._announced = request.content_length
        self._limit_bytes = limit_bytes
        self._setting = setting
        self._received = 0
        self._hash = hashlib.sha256(digest_head + b"\n")

    def __iter__(self) -> Iterator[bytes]:
        """The body in pieces.

        Raises:
            RequestTooLarge: the request announces more than the limit, or more comes.
            InvalidRequest: the client ended it early or sent a broken chunk.
            RequestTimeout: the client stopped sending.
        """
        if self._announced is not None and self._announced > self._limit_bytes:
            raise self._too_large(f"{self._announced} were announced")
        while piece := self._read():
            self._received += len(piece)
            if self._received > self._limit_bytes:
                raise self._too_large("more were sent")
            self._hash.update(piece)
            yield piece
        if self._announced is not None and self._received < self._announced:
            raise _ended_early(f"{self._received} of {self._announced} bytes came")

    def digest(self) -> str:
        """SHA-256 of the head and of what was read so far."""
        return self._hash.hexdigest()

    def read(self) -> bytes:
        """The whole body."""
        return b"".join(self)

    def exhaust(self) -> None:
        """Read to the end, for the digest alone."""
        for _ in self:
            pass

    def _read(self) -> bytes:
        try:
            return self._stream.read(PIECE_BYTES)
        except TimeoutError:
            raise RequestTimeout("the body stopped coming") from None
        except Exception as error:  # each server has its own errors for a lost client and for broken chunks
            raise _ended_early(f"{type(error).__name__} after {self._received} bytes") from error

    def _too_large(self, found: str) -> RequestTooLarge:
        return RequestTooLarge(f"the body is limited to {self._limit_bytes} bytes ({self._setting}), {found}")


def limit_stalls(request: Request) -> None:
    """Give the client's connection a time limit for each step. Servers other than ours keep their own."""
    connection = _connection(request)
    if connection is not None:
        connection.settimeout(STALLED_SECONDS)


@contextmanager
def refusing(request: Request) -> Iterator[None]:
    """Around the reading of a request: a client that is refused may finish sending, within bounds.

    Closing a connection while its client still sends resets it, and the client may never see why it was refused. When Redis is
    away there is little time for that, as this is to be told within a second; and strangers get little of ours.
    """
    try:
        yield
    except (LedgerUnavailable, Unauthorized, Forbidden):
        _let_finish(request, 0.1)
        raise
    except (VectorApiError, HTTPException):
        _let_finish(request, MOST_DISCARD_SECONDS)
        raise


def _let_finish(request: Request, seconds: float) -> None:
    if _discard(request, time.monotonic() + seconds):
        return
    force_close = getattr(request.environ.get("wsgi.input"), "force_close", None)  # see `api.server`
    if force_close is not None:
        force_close()


def _discard(request: Request, deadline: float) -> bool:
    """Whether the body's end was reached."""
    connection, count = _connection(request), 0
    with suppress(Exception):  # the client is slow, has gone or sends nonsense; it is being refused already
        while count < MOST_DISCARDED_BYTES and (seconds := deadline - time.monotonic()) > 0:
            if connection is not None:
                connection.settimeout(seconds)
            piece = request.stream.read(PIECE_BYTES)
            count += len(piece)
            if not piece:
                limit_stalls(request)
                return True
    limit_stalls(request)
    return False


def has_gone(request: Request) -> bool:
    """Whether the client has closed its connection. Call it when the body is read; False where it cannot be known."""
    connection = _connection(request)
    if connection is None or isinstance(connection, ssl.SSLSocket):
        return False
    poll = select.poll()  # not `select`, which takes no file descriptors above 1023
    poll.register(connection, select.POLLIN)
    try:
        return bool(poll.poll(0)) and connection.recv(1, socket.MSG_PEEK) == b""
    except OSError:
        return True


def _connection(request: Request) -> socket.socket | None:
    return request.environ.get("gunicorn.socket")


def _ended_early(found: str) -> InvalidRequest:
    return InvalidRequest(f"the body is incomplete: {found}; nothing was accepted", code="incomplete_body")


def lines(pieces: Iterable[bytes], *, limit_bytes: int) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, each with its number from 1.

    Raises:
        InvalidRequest: a line has more than `limit_bytes`; found before the line is held whole.
    """
    number, rest = 0, b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            number += 1
            if line and not line.isspace():
                yield number, line
        if len(rest) > limit_bytes:
            raise InvalidRequest(f"line {number + 1} is longer than {limit_bytes} bytes", param=f"line {number + 1}")
    if rest and not rest.isspace():
        yield number + 1, rest
