"""The inputs of a job on their way: NDJSON in a temporary file.

A file, as a request that got no answer is sent again as it was, and an iterator yields its texts only once. Up to
`MOST_BYTES_HELD` stay in memory.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Self

import orjson

from vector_api_client.errors import BadInput

Input = str | Mapping[str, str | None]
"""A text, or `{"text": …, "id": …}`."""

MOST_BYTES_HELD = 8 * 2**20
PIECE_BYTES = 256 * 1024
MOST_ID_CHARACTERS = 256


class Inputs:
    """Inputs that are checked, counted and ready to be sent as often as needed. `Client.submit` takes them as they are."""

    def __init__(self, inputs: Iterable[Input] = ()) -> None:
        """Raises BadInput for the first one that cannot be sent, TypeError for a single text."""
        if isinstance(inputs, str | bytes | Mapping):
            raise TypeError("inputs must be a list or an iterator of texts, not one text")
        self._file = tempfile.SpooledTemporaryFile(max_size=MOST_BYTES_HELD)  # noqa: SIM115 (closed by `close`)
        self._hash = hashlib.sha256()
        self.count = 0
        self.size_bytes = 0
        try:
            for item in inputs:
                self.add(item)
        except BaseException:
            self.close()
            raise

    def add(self, item: Input) -> None:
        """Raises BadInput, and adds nothing then."""
        try:
            line = encode(item)
        except BadInput as error:
            raise BadInput(f"inputs[{self.count}] {error.message}") from None
        self.add_line(line)

    def add_line(self, line: bytes) -> None:
        """Add what `encode` returned."""
        self._file.write(line)
        self._hash.update(line)
        self.count += 1
        self.size_bytes += len(line)

    def digest(self) -> str:
        """SHA-256 of all that will be sent."""
        return self._hash.hexdigest()

    def pieces(self, on_sent: Callable[[int], None] = lambda size: None) -> Iterator[bytes]:
        """The body, from its start. `on_sent` gets the size of each piece that the connection has taken."""
        self._file.seek(0)
        while piece := self._file.read(PIECE_BYTES):
            yield piece
            on_sent(len(piece))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def encode(item: Input) -> bytes:
    """An input as a line of NDJSON.

    Raises:
        BadInput: it is none. The message names the field and never shows the text.
    """
    text, input_id = (item, None) if isinstance(item, str) else _fields(item)
    if not isinstance(text, str):
        raise BadInput(f"text must be a string, got {type(text).__name__}")
    if not text:
        raise BadInput("text is empty")
    if input_id is None:
        return _dump(text, "text")
    if not isinstance(input_id, str) or len(input_id) > MOST_ID_CHARACTERS:
        found = f"{len(input_id)} characters" if isinstance(input_id, str) else type(input_id).__name__
        raise BadInput(f"id must be a string of at most {MOST_ID_CHARACTERS} characters, got {found}")
    _dump(input_id, "id")
    return _dump({"id": input_id, "text": text}, "text")


def _fields(item: object) -> tuple[object, object]:
    if not isinstance(item, Mapping):
        raise BadInput(f"must be a text or a mapping of text and id, got {type(item).__name__}")
    unknown = [str(name) for name in item if name not in ("id", "text")]
    if unknown:
        raise BadInput(f"has the unknown key {unknown[0][:32]!r}; known are id and text")
    return item.get("text"), item.get("id")


def _dump(value: object, field: str) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        raise BadInput(f"{field} has a lone surrogate, which is no character") from None
