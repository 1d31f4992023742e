"""Stands between a Redis server and its clients, and cuts replies off in the middle, or holds them back."""

import asyncio
import contextlib
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tests.processes import free_port

PIECE_BYTES = 65_536


class Relay:
    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._port = free_port()
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._requests: set[bytes] = set()
        self._replies: set[bytes] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.delay_seconds = 0.0
        """How long each reply is held back."""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}/0"

    def cut(self, *, requests: Iterable[bytes] = (), replies: Iterable[bytes] = ()) -> None:
        """For each of these, cut off one reply and its connection: the next to a request, or the next reply, that contains it."""
        self._requests, self._replies = set(requests), set(replies)

    @property
    def has_cut(self) -> bool:
        """Whether all of that has happened."""
        return not (self._requests or self._replies)

    @contextmanager
    def running(self) -> Iterator[None]:
        task = self._loop.create_task(self._serve())
        thread = threading.Thread(target=lambda: self._loop.run_until_complete(task), name="relay")
        thread.start()
        try:
            assert self._started.wait(10)
            yield
        finally:
            self._loop.call_soon_threadsafe(task.cancel)
            thread.join(timeout=10)
            self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._relay, "127.0.0.1", self._port)
        self._started.set()
        with contextlib.suppress(asyncio.CancelledError):
            await server.serve_forever()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)
        await asyncio.sleep(0.05)  # transports close in the loop's next rounds

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_unix_connection(self._socket)
        except OSError:
            writer.close()
            return
        self._writers += [writer, to_server]
        asked = asyncio.Event()  # on this connection: the reply that comes is to be cut off
        await asyncio.gather(self._ask(reader, to_server, asked), self._answer(from_server, writer, asked))

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: asyncio.Event) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while piece := await reader.read(PIECE_BYTES):
                if found := {part for part in self._requests if part in piece}:
                    self._requests -= found
                    asked.set()
                writer.write(piece)
                await writer.drain()
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: asyncio.Event) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while piece := await reader.read(PIECE_BYTES):
                await asyncio.sleep(self.delay_seconds)
                found = {part for part in self._replies if part in piece}
                if found or asked.is_set():
                    self._replies -= found
                    writer.write(piece[: len(piece) // 2])
                    await writer.drain()
                    break
                writer.write(piece)
                await writer.drain()
        writer.close()
