"""A real server that receives webhooks, and does with them what a test says."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ssl import SSLContext
from typing import Any

import orjson
from standardwebhooks import Webhook

from tests.processes import wait_for

SECRET = "whsec_c2VjcmV0LW9mLXRoZS1yZWNlaXZlci0wMTIzNDU2Nzg5"
PATH = "/take/path-secret?token=query-secret"


@dataclass
class Tried:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def verified(self, secret: str = SECRET) -> Any:
        """The event, if its signature is right."""
        return Webhook(secret).verify(self.body, self.headers)


class Receiver:
    """What came, and how it is answered: with a status, or by a function that does as it likes."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}{PATH}"
        self.tried: list[Tried] = []
        self.answer: int | Callable[[BaseHTTPRequestHandler], None] = 204

    def wait(self, count: int, seconds: float = 20) -> list[Tried]:
        """The first so many requests."""
        wait_for(lambda: len(self.tried) >= count, seconds=seconds, what=f"{count} webhooks")
        return self.tried[:count]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_args: Any) -> None:
        pass  # who sends has gone, as some tests want it


@contextmanager
def receiving(*, port: int = 0, tls: SSLContext | None = None) -> Iterator[Receiver]:
    """A receiver that listens; it is gone, and its port closed, at the end."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers["content-length"]))
            receiver.tried.append(Tried(self.path, headers, body))
            if callable(receiver.answer):
                receiver.answer(self)
                return
            self.send_response(receiver.answer)
            if 300 <= receiver.answer < 400:
                self.send_header("Location", f"http://127.0.0.1:{receiver.port}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_args: Any) -> None:
            pass

    with _Server(("127.0.0.1", port), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        receiver = Receiver(server.server_port)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield receiver
        finally:
            server.shutdown()


def targets_file(*targets: tuple[str, str], events: list[str] | None = None) -> str:
    """The content of a WEBHOOKS_FILE with these targets: tenant and URL."""
    wanted = f"events = {orjson.dumps(events).decode()}\n" if events else ""
    return "".join(f'[[{tenant}]]\nurl = "{url}"\nsecret = "{SECRET}"\n{wanted}' for tenant, url in targets)
