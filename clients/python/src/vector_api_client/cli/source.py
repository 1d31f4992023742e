"""A file on its way to the service: its texts, checked, and where in it each row of the output comes from."""

import tempfile
from dataclasses import dataclass
from typing import IO

import orjson

from vector_api_client.cli.order import Order
from vector_api_client.cli.readers import BadFile, Entry, format_of, read
from vector_api_client.cli.screen import Screen
from vector_api_client.errors import BadInput
from vector_api_client.inputs import Inputs, encode

SHOWN_PROBLEMS = 5
NUMBER_BYTES = 8
MOST_BYTES_HELD = 2**20


def temporary_file() -> IO[bytes]:
    return tempfile.SpooledTemporaryFile(max_size=MOST_BYTES_HELD)


class Rows:
    """Where in the file each row of the output comes from: its line, and whether it was sent. A temporary file of numbers."""

    def __init__(self) -> None:
        self._file = temporary_file()
        self.count = 0

    def add(self, line: int, *, sent: bool) -> None:
        self._file.write((line if sent else -line).to_bytes(NUMBER_BYTES, "little", signed=True))
        self.count += 1

    def at(self, index: int) -> tuple[int, bool]:
        """Line of a row, and whether it was sent."""
        self._file.seek(index * NUMBER_BYTES)
        number = int.from_bytes(self._file.read(NUMBER_BYTES), "little", signed=True)
        return abs(number), number > 0

    def line_of(self, sent: int) -> int:
        """Line of the input that was sent as this one, from 0."""
        sent_lines = (line for line, was_sent in map(self.at, range(self.count)) if was_sent)
        return next(line for place, line in enumerate(sent_lines) if place == sent)

    def close(self) -> None:
        self._file.close()


@dataclass
class Source:
    """A file that was read: what will be sent, and what will not."""

    inputs: Inputs
    rows: Rows
    problems: IO[bytes]
    """The bad lines, as the errors file tells of them."""
    bad: int = 0

    def close(self) -> None:
        self.inputs.close()
        self.rows.close()
        self.problems.close()


def read_source(order: Order, screen: Screen) -> Source:
    """The file, checked line by line.

    Raises:
        BadFile: it cannot be read, holds nothing, or has bad lines that shall not be skipped.
    """
    source = Source(Inputs(), Rows(), temporary_file())
    shown: list[str] = []
    try:
        with screen.stage("reading", None) as stage:
            for entry in read(order.file, format_of(order.file, order.file_format), order.columns):
                _add(entry, source, order, shown)
                if source.rows.count % 1000 == 0:
                    stage.set(source.rows.count)
        if source.bad and not order.skip_bad:
            raise BadFile(_refusal(order, source.bad, shown))
        if not source.inputs.count:
            raise BadFile(f"{order.name} holds no text")
    except BaseException:
        source.close()
        raise
    return source


def _refusal(order: Order, bad: int, shown: list[str]) -> str:
    lines = [f"{order.name} has {bad:,} bad {order.unit}{'s' if bad > 1 else ''}; nothing was sent"]
    lines += [f"  {order.unit} {line}" for line in shown]
    if bad > len(shown):
        lines.append(f"  and {bad - len(shown):,} more")
    return "\n".join([*lines, "  --skip-bad sends the others, and leaves these without a vector"])


def _add(entry: Entry, source: Source, order: Order, shown: list[str]) -> None:
    problem = entry.problem
    if entry.input is not None:
        try:
            source.inputs.add_line(encode(entry.input))
        except BadInput as error:
            problem = error.message
    source.rows.add(entry.number, sent=not problem)
    if problem:
        source.bad += 1
        if len(shown) < SHOWN_PROBLEMS:
            shown.append(f"{entry.number:,} {problem}")
        if order.skip_bad:
            record = {"index": source.rows.count - 1, "line": entry.number, "id": None, "code": "bad_line", "message": problem}
            source.problems.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
