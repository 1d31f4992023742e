"""Bodies are read within their limits and to their true end; lines come out as they went in."""

import io
from typing import Any

import pytest
from flask import Request
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.exceptions import RequestTimeout

from api.bodies import PIECE_BYTES, Body, lines, refusing
from core.errors import InvalidRequest, LedgerUnavailable, RequestTooLarge

LIMIT = 1_000_000


class Stream(io.BytesIO):
    """A connection that fails after its last byte, if told to."""

    failure: Exception | None = None

    def read(self, size: int | None = -1) -> bytes:
        found = super().read(size)
        if not found and self.failure:
            raise self.failure
        return found


def request_of(content: bytes, *, announced: int | None = None, failure: Exception | None = None) -> Request:
    """A request as a WSGI server hands it over; `announced` is its Content-Length, None a chunked body."""
    stream = Stream(content)
    stream.failure = failure
    environ: dict[str, Any] = {"REQUEST_METHOD": "POST", "wsgi.input": stream, "wsgi.input_terminated": True}
    if announced is not None:
        environ["CONTENT_LENGTH"] = str(announced)
    return Request(environ)


def body_of(request: Request, limit_bytes: int = LIMIT, head: bytes = b"") -> Body:
    return Body(request, limit_bytes=limit_bytes, setting="SOME_LIMIT", digest_head=head)


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, LIMIT])
@pytest.mark.parametrize("is_announced", [True, False])
def test_whole_body_is_read(size: int, is_announced: bool) -> None:
    content = b"x" * size
    assert body_of(request_of(content, announced=size if is_announced else None)).read() == content


@pytest.mark.parametrize("missing", [1, PIECE_BYTES, LIMIT])
def test_body_shorter_than_announced_is_refused(missing: int) -> None:
    body = body_of(request_of(b"x" * 100, announced=100 + missing), limit_bytes=2 * LIMIT)
    with pytest.raises(InvalidRequest, match=f"100 of {100 + missing} bytes came") as caught:
        body.read()
    assert caught.value.code == "incomplete_body"


@pytest.mark.parametrize("failure", [ConnectionResetError(), ValueError("bad chunk"), EOFError()])
def test_broken_stream_is_an_incomplete_body(failure: Exception) -> None:
    with pytest.raises(InvalidRequest) as caught:
        body_of(request_of(b"x" * 100, failure=failure)).read()
    assert caught.value.code == "incomplete_body"
    assert "bad chunk" not in caught.value.message


def test_stalled_client_is_told_so() -> None:
    with pytest.raises(RequestTimeout):
        body_of(request_of(b"x", failure=TimeoutError())).read()


def test_body_over_the_limit_is_refused_before_it_is_read_or_as_soon_as_it_shows() -> None:
    announced = request_of(b"x" * 101, announced=101)
    with pytest.raises(RequestTooLarge, match=r"limited to 100 bytes \(SOME_LIMIT\), 101 were announced"):
        body_of(announced, limit_bytes=100).read()
    assert announced.stream.tell() == 0
    chunked = request_of(b"x" * 10 * PIECE_BYTES)
    with pytest.raises(RequestTooLarge, match="more were sent"):
        body_of(chunked, limit_bytes=PIECE_BYTES).read()
    assert chunked.stream.tell() == 2 * PIECE_BYTES


def test_digest_tells_bytes_and_options_apart() -> None:
    def digest(content: bytes, head: bytes) -> str:
        body = body_of(request_of(content), head=head)
        body.exhaust()
        return body.digest()

    assert digest(b"a", b"x") == digest(b"a", b"x")
    assert len({digest(b"a", b"x"), digest(b"b", b"x"), digest(b"a", b"y"), digest(b"", b"x\na"), digest(b"a", b"")}) == 5


def test_refused_client_may_finish_sending() -> None:
    request = request_of(b"x" * 500_000)
    with pytest.raises(InvalidRequest), refusing(request):
        raise InvalidRequest("no")
    assert request.stream.read() == b""


class Closeable(Stream):
    closed_by_us = False

    def force_close(self) -> None:
        self.closed_by_us = True


@pytest.mark.parametrize("error", [InvalidRequest("no"), LedgerUnavailable("gone")])
def test_connection_whose_body_was_left_is_closed(error: Exception) -> None:
    request = request_of(b"")
    request.environ["wsgi.input"] = stream = Closeable(b"x")
    stream.failure = TimeoutError()
    with pytest.raises(type(error)), refusing(request):
        raise error
    assert stream.closed_by_us


@given(st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")), max_size=12), st.data())
def test_lines_do_not_depend_on_how_the_body_was_cut(content: list[bytes], data: st.DataObject) -> None:
    whole = b"\n".join(content)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    expected = [(number, line) for number, line in enumerate(content, start=1) if line.strip(b" \t\n\r\x0b\f")]
    assert list(lines(pieces, limit_bytes=100)) == expected


def test_line_without_end_is_refused_before_it_is_held() -> None:
    taken = 0

    def pieces() -> Any:
        nonlocal taken
        yield b'"a"\n'
        while True:
            taken += 1
            yield b"x" * 100

    found = lines(pieces(), limit_bytes=1000)
    assert next(found) == (1, b'"a"')
    with pytest.raises(InvalidRequest, match="line 2 is longer than 1000 bytes"):
        next(found)
    assert taken == 11
