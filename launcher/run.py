"""`python -m launcher run`: the service stays up until Ctrl-C."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from core.config import Settings
from core.logs import JsonLines, is_json
from launcher.interrupts import Interrupts
from launcher.stack import CHECK_SECONDS, ServiceStopped, Show, Stack, check_port

COLOURS = {"api": "\x1b[36m", "worker": "\x1b[32m", "vector-api": "\x1b[1m"}
WIDTH = max(map(len, COLOURS))


def run(settings: Settings, environ: Mapping[str, str], data: Path, *, queues: str) -> int:
    """Start the service; returns the exit code when it has stopped: 0 after Ctrl-C, 1 when one of its processes ended by itself.

    Raises:
        VectorApiError: it cannot be started; the message says what to do.
    """
    check_port(settings.api_host, settings.api_port)
    show = show_json if is_json(settings.log_format, sys.stdout) else show_text
    environ = dict(environ) | {"LOG_FORMAT": "json" if show is show_json else "text"}  # theirs is a pipe to us
    interrupts = Interrupts()
    interrupts.install()
    stack = Stack(settings, environ, data, port=settings.api_port, queues=queues, show=show, interrupts=interrupts)
    try:
        with stack:
            try:
                _stay(stack, show)
            except KeyboardInterrupt:
                show("vector-api", "stopping; Ctrl-C again does not wait for the batch that is being embedded")
                raise
    except KeyboardInterrupt:
        show("vector-api", "stopped")
        return 0
    except ServiceStopped as error:
        show("vector-api", f"{error.message}. Everything is stopped")
        return 1


def _stay(stack: Stack, show: Show) -> NoReturn:
    show("vector-api", f"the API is at {stack.url}; the worker loads its model")
    stack.wait_for_api()
    stack.wait_for_worker()
    if stack.own_redis_url:
        show("vector-api", f"Redis, for other terminals: REDIS_URL='{stack.own_redis_url}'")
    show("vector-api", f"ready at {stack.url}; Ctrl-C stops it")
    while True:
        stack.check()
        time.sleep(CHECK_SECONDS)


_printing = threading.Lock()


def show_text(name: str, line: str) -> None:
    """A line of output with the name of the process it comes from."""
    head = f"{name:{WIDTH}} |"
    if sys.stdout.isatty():
        head = f"{COLOURS[name]}{head}\x1b[0m"
    _print(f"{head} {line}")


def show_json(name: str, line: str) -> None:
    """A line of output; one that is no record of a log becomes one."""
    if not line.startswith("{"):
        record = logging.LogRecord(name, logging.INFO, __file__, 0, line, None, None)
        line = JsonLines(name).format(record)
    _print(line)


def _print(line: str) -> None:
    with _printing, contextlib.suppress(OSError):  # when nobody reads it any more, the service goes on
        print(line, flush=True)
