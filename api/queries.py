"""Read a query string: known parameters only, each at most once, with errors that name the parameter and what is allowed."""

from collections.abc import Collection
from typing import Annotated, Any, TypeVar

import orjson
from pydantic import Field
from typing_extensions import TypedDict
from werkzeug.datastructures import MultiDict

from core.errors import InvalidRequest

MOST_SECONDS_WAIT = 30
MOST_WHOLE = 10**18 - 1

Offset = Annotated[int, Field(ge=0, le=MOST_WHOLE)]


class WaitQuery(TypedDict, total=False):
    wait: Annotated[float, Field(ge=0, le=MOST_SECONDS_WAIT, description="Seconds to hold the answer until the job has ended.")]


class SubmitQuery(WaitQuery, total=False):
    dry_run: Annotated[bool, Field(description="Only count: the job's record gets the figures, and no vectors are computed.")]


T = TypeVar("T", int, None)


class Query:
    """The parameters of a request.

    Raises:
        InvalidRequest: a parameter that is not in `known`, or the same one twice.
    """

    def __init__(self, args: MultiDict[str, str], known: Collection[str]) -> None:
        for name in args:
            if name not in known:
                allowed = f"known are {', '.join(sorted(known))}" if known else "none is known here"
                raise InvalidRequest(f"unknown query parameter {name[:64]!r}; {allowed}", param=name[:64])
            if len(args.getlist(name)) > 1:
                raise InvalidRequest(f"query parameter {name} is given more than once", param=name)
        self._values = {name: args[name] for name in args}

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str, default: str = "") -> str:
        return self._values.get(name, default)

    def one_of(self, name: str, allowed: Collection[str]) -> str | None:
        """The parameter's value, one of those allowed; None when it is not given."""
        value = self._values.get(name)
        if value is not None and value not in allowed:
            raise _wrong(name, f"one of {', '.join(allowed)}", value)
        return value

    def whole(self, name: str, default: T, *, minimum: int = 0, maximum: int | None = None) -> int | T:
        """The parameter as a whole number within the limits."""
        raw = self._values.get(name)
        if raw is None:
            return default
        value = whole(raw)
        if value is None or value < minimum or (maximum is not None and value > maximum):
            limits = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
            raise _wrong(name, f"a whole number {limits}", raw)
        return value

    def wait_seconds(self) -> float:
        """`wait`: how long to hold the answer until the job ends."""
        raw = self._values.get("wait", "0")
        try:
            seconds = float(raw)
        except ValueError:
            seconds = -1
        if not 0 <= seconds <= MOST_SECONDS_WAIT:
            raise _wrong("wait", f"a number of seconds from 0 to {MOST_SECONDS_WAIT}", raw)
        return seconds

    def flag(self, name: str) -> bool:
        """The parameter as yes or no; no when it is not given."""
        return self.one_of(name, ("1", "true", "0", "false")) in ("1", "true")

    def options(self) -> dict[str, Any]:
        """The options of a job as they would stand in a JSON body."""
        readers = {
            "normalize": _boolean,
            "dimensions": _number,
            "chunk_overlap": _number,
            "ttl_seconds": _number,
            "metadata": _object,
        }
        return {
            name: readers.get(name, _same)(name, raw)
            for name, raw in self._values.items()
            if name not in SubmitQuery.__annotations__
        }

    def canonical(self) -> bytes:
        """The parameters that say what is asked for, sorted, for comparing two requests. Waiting longer is no other request."""
        return orjson.dumps(sorted((name, raw) for name, raw in self._values.items() if name != "wait"))


def _same(_name: str, raw: str) -> Any:
    return raw


def _boolean(name: str, raw: str) -> Any:
    if raw not in ("true", "false"):
        raise _wrong(name, "true or false", raw)
    return raw == "true"


def _number(name: str, raw: str) -> Any:
    value = whole(raw)
    if value is None:
        raise _wrong(name, "a whole number", raw)
    return value


def _object(name: str, raw: str) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"{name} is not valid JSON at character {error.pos}: {error.msg}", param=name) from None


def whole(raw: str) -> int | None:
    """The number written in digits, or None. Stricter than `int`, which takes `1_0`, spaces and other scripts' digits."""
    digits = raw.removeprefix("-")
    return int(raw) if digits.isascii() and digits.isdigit() and len(digits) <= len(str(MOST_WHOLE)) else None


def _wrong(name: str, allowed: str, raw: str) -> InvalidRequest:
    shown = repr(raw) if len(raw) <= 32 else f"{len(raw)} characters"
    return InvalidRequest(f"{name} must be {allowed}, got {shown}", param=name)
