"""Serve the API with gunicorn: one process, many threads, with limits against slow and oversized requests."""

import contextlib
import os
import socket
import sys
import time
import uuid
from http import HTTPStatus
from pathlib import Path
from typing import Any

from flask import Flask
from gunicorn import util
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from gunicorn.http import errors as http_errors
from gunicorn.workers.gthread import ThreadWorker

from api import requests, token_ids
from api.access import KeyFile, require_closed
from api.answers import SECURITY_HEADERS
from api.app import create_app
from api.errors import INVALID, SERVER, error_body
from core import logs, tracing
from core.config import Settings
from core.errors import InvalidSetting
from core.models import Models
from core.webhooks import Targets

SHARED_MEMORY = "/dev/shm"

HEAD_SECONDS = 10.0
"""How long a client may take to send the head of a request, from its first byte on: it holds a thread, whoever it is."""

CLOSING_SECONDS = 2.0
CLOSING_BYTES = 65_536
"""How long, and for how much that it still sends, a client is waited for that does not close its side. As gunicorn has it."""


def main() -> int:
    """Serve until a signal says stop. Returns the exit code: 1 when the address cannot be used, 2 for a bad setting."""
    try:
        settings = Settings.from_env()
        token_ids.load_all(Models.of(settings))
        Targets.of(settings)
        tracing.require(os.environ)
    except InvalidSetting as error:
        print(f"vector-api: {error.message}", file=sys.stderr)
        return 2
    logs.set_up(settings, "api", requests.ids)
    try:
        listener = listen(settings)
    except InvalidSetting as error:
        print(f"vector-api: {error.message}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"vector-api: {_explain(error, settings)}", file=sys.stderr)
        return 1
    Server(settings, listener).run()
    return 0


def listen(settings: Settings) -> socket.socket:
    """A socket bound to the API's address.

    Bound here and handed on: gunicorn itself tries for 5 s and then says little.

    Raises:
        InvalidSetting: others could reach it, and no key is asked for; or the keys cannot be used.
    """
    family, *_, address = socket.getaddrinfo(settings.api_host, settings.api_port, type=socket.SOCK_STREAM)[0]
    require_closed(settings, address)
    if settings.api_keys_file:
        KeyFile(Path(settings.api_keys_file))
    return socket.create_server((settings.api_host, settings.api_port), family=family, backlog=1024)


def _explain(error: OSError, settings: Settings) -> str:
    address = f"{settings.api_host}:{settings.api_port}"
    if isinstance(error, socket.gaierror):
        return f"API_HOST={settings.api_host} is no address of this machine ({error.strerror})"
    advice = f"choose another port, as in API_PORT={settings.api_port % 65535 + 1}, or another API_HOST"
    reason = os.strerror(error.errno).lower() if error.errno else str(error)
    return f"cannot listen at {address} ({reason}); {advice}"


class Server(BaseApplication):  # type: ignore[misc]
    """gunicorn with our configuration instead of its command line."""

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._settings = settings
        self._listener = listener.detach()
        super().__init__()

    def load_config(self) -> None:
        for name, value in configuration(self._settings, self._listener).items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        """The application, made in the process that serves it: no connection is shared across the fork."""
        tracing.start(os.environ, "vector-api", f"{socket.gethostname()}/{os.getpid()}")
        return create_app(self._settings)


class RootLogger(Logger):  # type: ignore[misc]
    """gunicorn's own records go where all others do, in the same form."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True
        self.error_log.addFilter(logs.withhold)  # once, however often: it is the same filter


def configuration(settings: Settings, listener: int) -> dict[str, Any]:
    """gunicorn's settings."""
    return {
        "bind": f"fd://{listener}",
        "workers": 1,
        "worker_class": PatientWorker,
        "threads": settings.api_threads,
        "worker_connections": 1000 + settings.api_threads,
        "backlog": 1024,
        "keepalive": 75,  # longer than most proxies and clients keep an idle connection, so that they close it first
        "graceful_timeout": 30,
        "timeout": 60,
        "limit_request_line": 8190,
        "limit_request_fields": 64,
        "limit_request_field_size": 8190,
        "worker_tmp_dir": SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None,
        "control_socket_disable": True,
        "proc_name": "vector-api",
        "loglevel": settings.log_level.lower(),
        "logger_class": RootLogger,
        "accesslog": None,  # api.requests writes one
        "pre_request": _let_body_close,
        "post_worker_init": _join_life_of,
        "worker_exit": lambda _server, _worker: tracing.stop(),
    }


def _let_body_close(_worker: Any, request: Any) -> None:
    """Let the application end a connection whose body it will not read to the end. gunicorn drops a `Connection` header."""
    request.body.force_close = request.force_close


def _join_life_of(worker: Any) -> None:
    """Webhooks are sent from now on. When the process is asked to stop, that ends, and so do requests that wait for a job."""
    found = worker.wsgi.extensions["services"]
    found.ended.stopping = found.webhooks.stopping = lambda: not worker.alive
    found.webhooks.start()


class SlowHead(http_errors.ParseException):  # type: ignore[misc]
    """The head of a request did not come in time."""


class HeadSocket(socket.socket):
    """A client's connection with a time limit for the heads of requests, of which gunicorn has none.

    gunicorn makes the connection blocking before it reads a head; the application sets a timeout of its own for what follows.
    """

    _deadline: float | None = None

    def setblocking(self, flag: bool, /) -> None:
        self._deadline = time.monotonic() + HEAD_SECONDS if flag else None
        super().setblocking(flag)

    def settimeout(self, value: float | None, /) -> None:
        self._deadline = None
        super().settimeout(value)

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        if self._deadline is None:
            return super().recv(bufsize, flags)
        super().settimeout(max(0.001, self._deadline - time.monotonic()))
        try:
            return super().recv(bufsize, flags)
        except TimeoutError:
            raise SlowHead from None


class PatientWorker(ThreadWorker):  # type: ignore[misc]
    """Answers what is no HTTP, or over the limits of a head, in the service's one error shape; and waits for clients in threads.

    Such a request never reaches the application; gunicorn would answer with a page of HTML. And it would wait, in the one thread
    that accepts connections, for each client that does not close its own side after the last answer: 2 s, one after the other.
    """

    def enqueue_req(self, conn: Any) -> None:
        if not isinstance(conn.sock, HeadSocket):
            conn.sock = HeadSocket(fileno=conn.sock.detach())
        super().enqueue_req(conn)

    def handle(self, conn: Any) -> Any:
        """Whether the connection is kept. Where it is not, the wait for the client's side is over when this returns."""
        kept = super().handle(conn)
        if not kept:
            _finish(conn.sock)
        return kept

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        status, reason, code = _unreadable(exc)
        request_id = uuid.uuid4().hex
        if status < 500:
            client_name = addr[0] if addr else "a local client"
            told = {"request_id": request_id, "status": status}
            why = f"{type(exc).__name__}: {reason}"  # its own message may quote a body that it took for a head
            self.log.warning("request %s from %s was not read: %s", request_id, client_name, why, extra=told)
            body = error_body(f"the request cannot be read: {reason}", INVALID, None, code)
        else:
            told = {"request_id": request_id, "status": status}
            self.log.error("request %s failed outside of the application", request_id, exc_info=logs.withheld(exc), extra=told)
            body = error_body("an error of the service itself", SERVER, None, code)
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nConnection: close\r\n"
        head += f"x-request-id: {request_id}\r\n" + ("x-should-retry: false\r\n" if status != 408 else "")
        head += "".join(f"{name}: {value}\r\n" for name, value in SECURITY_HEADERS.items())
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        try:
            util.write_nonblock(client, head.encode() + body)
        except OSError as error:
            self.log.debug("the client has gone: %s", error)


def _finish(client: socket.socket) -> None:
    """End both sides of a connection, so that closing it waits for nothing.

    What the client sends until it closes its own is read for a while: unread bytes would have the system throw away our answer
    (RFC 9112, section 9.6).
    """
    deadline, left = time.monotonic() + CLOSING_SECONDS, CLOSING_BYTES
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_WR)
        while left > 0 and (seconds := deadline - time.monotonic()) > 0:
            client.settimeout(seconds)
            found = client.recv(4096)
            if not found:
                break
            left -= len(found)
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_RD)


def _unreadable(error: Exception) -> tuple[int, str, str]:
    """Status, reason and code of what gunicorn could not read. The reason shows nothing of the request."""
    match error:
        case SlowHead():
            return 408, f"it did not come within {HEAD_SECONDS:g} s", "request_timeout"
        case http_errors.LimitRequestLine():
            return 414, "its first line (path and query) is limited to 8190 bytes", "uri_too_long"
        case http_errors.LimitRequestHeaders():
            return 431, "it is limited to 64 header fields of 8190 bytes", "request_header_fields_too_large"
        case http_errors.ExpectationFailed():
            return 417, "its Expect field asks for what is not done here", "expectation_failed"
        case http_errors.UnsupportedTransferCoding():
            return 501, "its transfer coding is not supported", "not_implemented"
        case http_errors.ParseException():
            return 400, "it is not valid HTTP", "bad_request"
        case _:
            return 500, "", "internal_error"
