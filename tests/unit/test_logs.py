"""Lines of the log, and what they leave out."""

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from core.logs import JsonLines, TextLines, is_json, withheld, withhold

ROOT = Path(__file__).parents[2]


def record(message: str = "job %s: done", *args: object, **fields: object) -> logging.LogRecord:
    found = logging.LogRecord("vector-api", logging.WARNING, __file__, 1, message, args, None)
    found.created = 1795491112.0219
    found.__dict__ |= fields
    return found


def test_line_is_one_object_with_the_ids_as_fields() -> None:
    line = JsonLines("worker").format(record("job %s:\nür\u2028", "j1", job="j1", shard="0+2", queue="", data={"args": "a text"}))
    assert len(line.splitlines()) == 1
    assert json.loads(line) == {
        "time": "2026-11-24T03:31:52.021Z",
        "level": "WARNING",
        "service": "worker",
        "logger": "vector-api",
        "message": "job j1:\nür\u2028",
        "job": "j1",
        "shard": "0+2",
    }


def test_traceback_is_a_field() -> None:
    found = record("failed")
    try:
        raise ValueError("why")
    except ValueError:
        found.exc_info = sys.exc_info()
    (line,) = JsonLines("api").format(found).splitlines()
    assert json.loads(line)["traceback"].startswith("Traceback (most recent call last):\n")
    assert json.loads(line)["traceback"].endswith("ValueError: why")


def test_text_shows_the_request_that_a_line_is_about() -> None:
    assert TextLines().format(record("done", request_id="r-1")).endswith(" WARNING vector-api [r-1]: done")
    assert TextLines().format(record("done")).endswith(" WARNING vector-api: done")


def test_text_has_escapes_for_what_a_terminal_would_obey() -> None:
    found = record("job %s\r\n2026-11-24 ERROR forged\x1b[2J\x9b2J\u202e\ud800 für", "j1", request_id="r-1")
    try:
        raise ValueError("two\nlines\x1b[2J\x85")
    except ValueError:
        found.exc_info = sys.exc_info()
    line, *traceback = TextLines().format(found).split("\n")
    assert line.endswith(r"[r-1]: job j1\r\n2026-11-24 ERROR forged\x1b[2J\x9b2J\u202e\ud800 für")
    assert traceback[0].startswith("Traceback")
    assert traceback[-2:] == ["ValueError: two", r"lines\x1b[2J\x85"]


def test_only_a_terminal_gets_text_by_default() -> None:
    master, slave = os.openpty()
    with open(slave, "w") as terminal, open(master, "rb"):
        assert [is_json(setting, terminal) for setting in ("auto", "json", "text")] == [False, True, False]
    assert [is_json(setting, io.StringIO()) for setting in ("auto", "json", "text")] == [True, True, False]


def test_withheld_exception_shows_where_it_and_its_causes_were_raised() -> None:
    text = "".join(["a", " ", "text"])  # which the lines of this file do not show

    def tokenize() -> None:
        try:
            raise KeyError(text)
        except KeyError as error:
            raise ValueError(f"cannot take {text}") from error

    with pytest.raises(ValueError, match=text) as caught:
        tokenize()
    found = record()
    found.args, shown = ("j",), withheld(caught.value)
    found.exc_info = (type(shown), shown, shown.__traceback__)
    line = JsonLines("worker").format(found)
    assert "in tokenize" in line
    assert "KeyError, whose message" in line
    assert "ValueError, whose message" in line
    assert text not in line.replace("quote a text", "")


@pytest.mark.parametrize("link", ["__cause__", "__context__"])
def test_exceptions_that_led_to_each_other_are_each_shown_once(link: str) -> None:
    first, second = ValueError("a"), KeyError("b")
    setattr(first, link, second)
    setattr(second, link, first)
    shown = withheld(first)
    led = getattr(shown, link)
    assert str(led).startswith("KeyError, ")
    assert (led.__cause__, led.__context__) == (None, None)


def test_library_that_logs_exceptions_logs_their_types() -> None:
    error = ValueError("quotes a request")
    for found in (record("gone: %s, %d", error, 3), record(error)):  # type: ignore[arg-type]
        found.exc_info = (ValueError, error, None)
        assert withhold(found)
        assert withhold(found), "another filter"
        line = TextLines().format(found)
        assert "quotes a request" not in line
        assert "ValueError, whose message" in line
    assert record("gone: %s", "why").getMessage() == "gone: why"


def test_what_nobody_caught_and_warnings_are_records_too() -> None:
    script = (
        "import threading, warnings\n"
        "from core import logs\nfrom core.config import Settings\n"
        "logs.set_up(Settings(), 'api', lambda: {'worker': 'w'})\n"
        "warnings.warn('careful')\n"
        "thread = threading.Thread(target=lambda: 1 / 0)\nthread.start()\nthread.join()\n"
        "raise ValueError('the end')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["logger"] for line in lines] == ["py.warnings", "core.logs", "core.logs"]
    assert [line["worker"] for line in lines] == ["w", "w", "w"]
    assert "ZeroDivisionError" in lines[1]["traceback"]
    assert lines[2]["traceback"].endswith("ValueError: the end")
    assert done.returncode == 1
