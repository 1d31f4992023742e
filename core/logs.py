"""The lines of the log: an object of JSON each for programs, or text for people. Both go to the standard error.

Ids have fields of their own, also in the records of libraries. No record holds a text that is embedded, a key or a password: what
libraries attach to theirs is left out, and `withheld` leaves out what an exception says where it may quote a text.

With the standard library, which takes a few lines: structlog would bring a second way to log beside `logging`, which Celery and
gunicorn use, and python-json-logger writes every attribute of a record unless it is told of each that it must not.
"""

import json
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from core.config import Settings

FIELDS = ("request_id", "trace_id", "job", "shard", "worker", "queue", "tenant", "method", "endpoint", "status", "ms")
"""What a line may have beside its time, level, service, logger and message. Records get them as `extra`, or from `set_up`."""

log = logging.getLogger(__name__)

Ids = Callable[[], Mapping[str, str]]


class JsonLines(logging.Formatter):
    """A record as one line: an object of JSON in ASCII, whatever is in it. The time is in UTC, as in RFC 3339."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: record.__dict__[name] for name in FIELDS if record.__dict__.get(name) not in (None, "")}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """A record for people, in local time, a traceback on lines of its own. Beside the message it shows only the request's id."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        request_id = record.__dict__.get("request_id")
        about = f" [{request_id}]" if request_id else ""
        return f"{record.asctime} {record.levelname} {record.name}{about}: {_printable(record.message)}"

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return "\n".join(map(_printable, super().formatException(ei).split("\n")))


def _printable(text: str) -> str:
    """With escapes for what would move a terminal's cursor, begin another line or hide what follows."""
    if text.isprintable():
        return text
    return "".join(part if part.isprintable() else part.encode("unicode_escape").decode() for part in text)


def is_json(log_format: str, stream: TextIO) -> bool:
    """Whether lines that go to `stream` are JSON, by the setting LOG_FORMAT."""
    return log_format == "json" or (log_format == "auto" and not stream.isatty())


def set_up(settings: Settings, service: str, ids: Ids = dict) -> None:
    """Log what all loggers of this process have to say, uncaught exceptions and warnings as well.

    Args:
        ids: called for each record; the fields it gives are those that the record lacks.
    """

    def add_ids(record: logging.LogRecord) -> bool:
        for name, value in ids().items():
            record.__dict__.setdefault(name, value)
        return True

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(service) if is_json(settings.log_format, sys.stderr) else TextLines())
    handler.addFilter(add_ids)
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda found: _log_uncaught(found.exc_type, found.exc_value, found.exc_traceback)


def adopt_loggers() -> None:
    """Have libraries that write to a stream by themselves log as all others do. To be called once they are imported."""
    for found in tuple(logging.root.manager.loggerDict.values()):
        if isinstance(found, logging.Logger) and any(map(_is_a_stream, found.handlers)):
            found.handlers[:] = (handler for handler in found.handlers if not _is_a_stream(handler))
            found.propagate = True


def _is_a_stream(handler: logging.Handler) -> bool:
    return type(handler) is logging.StreamHandler  # no file, which somebody has asked for


def _log_uncaught(kind: type[BaseException], error: BaseException | None, trace: Any) -> None:
    if not issubclass(kind, KeyboardInterrupt | SystemExit):
        log.critical("an exception that nobody caught", exc_info=error or kind())


class Withheld(Exception):
    """Stands for an exception whose message may quote a text."""


def withheld(error: BaseException) -> Withheld:
    """The exception for the log: its type and where it was raised, and so those that led to it, without their messages."""
    return error if isinstance(error, Withheld) else _withheld(error, frozenset())


def _withheld(error: BaseException, seen: frozenset[int]) -> Withheld:
    found = Withheld(f"{type(error).__name__}, whose message may quote a text").with_traceback(error.__traceback__)
    seen |= {id(error)}  # libraries that keep an exception and raise it again make chains that end in themselves
    cause, context = error.__cause__, error.__context__
    if cause and id(cause) not in seen:
        found.__cause__ = _withheld(cause, seen)
    elif context and not error.__suppress_context__ and id(context) not in seen:
        found.__context__ = _withheld(context, seen)
    return found


def withhold(record: logging.LogRecord) -> bool:
    """A filter for a library's logger: of exceptions, which may quote a request, only types and places stay."""
    if record.exc_info and record.exc_info[1]:
        shown = withheld(record.exc_info[1])
        record.exc_info = (Withheld, shown, shown.__traceback__)
    if isinstance(record.args, tuple):
        record.args = tuple(type(part).__name__ if isinstance(part, BaseException) else part for part in record.args)
    if isinstance(record.msg, BaseException):
        record.msg = type(record.msg).__name__
    return True
