"""A relay between a client and an API that loses connections, and changes what passes, when it is told to."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

PIECE_BYTES = 65_536


@dataclass
class Relay:
    """Passes connections on to `target`.

    `cuts`: each takes down the next connection after so many bytes of its answers.
    `asking`, `answering`: each piece of requests and of answers goes through it; an OSError takes the connection down.
    """

    listener: socket.socket
    target: int
    cuts: list[int] = field(default_factory=list)
    asking: Callable[[bytes], bytes] = bytes
    answering: Callable[[bytes], bytes] = bytes
    connections: int = 0
    _open: set[socket.socket] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def drop_all(self) -> None:
        """Take down every connection there is."""
        for found in list(self._open):
            _shut(found)

    def serve(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client, _ = self.listener.accept()
                self.connections += 1
                threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.target)) as server:
            self._open |= {client, server}
            asking = threading.Thread(target=self._pump, args=(client, server, False), daemon=True)
            asking.start()
            self._pump(server, client, True)
            asking.join()
            self._open -= {client, server}

    def _pump(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        count = 0
        with contextlib.suppress(OSError):
            while piece := source.recv(PIECE_BYTES):
                piece = self.answering(piece) if answers else self.asking(piece)
                count += len(piece)
                if answers and self.cuts and count > self.cuts[0]:
                    target.sendall(piece[: len(piece) - (count - self.cuts.pop(0))])
                    break
                target.sendall(piece)
        _shut(source)
        _shut(target)


def _shut(found: socket.socket) -> None:
    with contextlib.suppress(OSError):
        found.shutdown(socket.SHUT_RDWR)


@contextmanager
def relay_to(target: int) -> Iterator[Relay]:
    listener = socket.create_server(("127.0.0.1", 0))
    relay = Relay(listener, target)
    thread = threading.Thread(target=relay.serve, name="relay")
    thread.start()
    try:
        yield relay
    finally:
        _shut(listener)
        listener.close()
        relay.drop_all()
        thread.join(timeout=10)
