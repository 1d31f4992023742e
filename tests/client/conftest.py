"""One API and one worker for all tests of the client.

The worker takes 50 µs a token, so that a test chooses how long its texts take.
"""

import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from launcher.redis_server import RedisServer
from tests.client.relay import Relay, relay_to
from tests.conftest import QUICK
from tests.processes import Process, Stack, running_stack
from vector_api_client import Client
from vector_api_client.cli import main

KEY = "va_the-tests-own-key"
SETTINGS = QUICK | {"SHARD_INPUTS": "32", "FAKE_TOKEN_SECONDS": "0.00005", "BATCH_SECONDS": "0.02"}


@pytest.fixture(scope="package")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("client")
    with RedisServer(folder / "redis", {"appendfsync": "no"}) as server:
        for found in running_stack(server.url, folder, SETTINGS):
            found.api()
            found.worker(BATCH_SIZE="1")
            yield found


@pytest.fixture(scope="package")
def url(stack: Stack) -> str:
    """Of the API that every test may use. A test that starts another one changes the stack's."""
    return stack.base_url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, retry_seconds=30) as found:
        yield found


@pytest.fixture
def relay(url: str) -> Iterator[Relay]:
    with relay_to(port_of(url)) as found:
        yield found


@pytest.fixture
def lossy(relay: Relay) -> Iterator[Client]:
    """A client whose connections go through the relay."""
    with Client(relay.url, retry_seconds=30) as found:
        yield found


@pytest.fixture
def other_api(stack: Stack) -> Iterator["OtherApi"]:
    found = OtherApi(stack)
    yield found
    found.stop()


class OtherApi:
    """An API of a test's own over the same Redis."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._processes: list[Process] = []

    def start(self, **environ: str) -> str:
        """Its URL."""
        before = self._stack.base_url
        self._processes.append(self._stack.api(**environ))
        found, self._stack.base_url = self._stack.base_url, before
        return found

    def kill(self) -> None:
        self._processes[-1].kill_group()

    def stop(self) -> None:
        for process in self._processes:
            process.kill_group()


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


class Done(NamedTuple):
    code: int
    out: str
    told: str


Run = Callable[..., Done]


@pytest.fixture
def environ(url: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VECTOR_API_")}
    return kept | {"VECTOR_API_URL": url}


@pytest.fixture
def run(environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in an empty folder to its end, in this process: starting one takes longer than most of the tests."""
    monkeypatch.chdir(tmp_path)

    def run_command(*arguments: str, text: str = "", **changed: str) -> Done:
        with monkeypatch.context() as patch:
            for name, value in (environ | changed).items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["vector-api", *arguments])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
            with pytest.raises(SystemExit) as ended:
                main()
        out, told = capsys.readouterr()
        return Done(int(ended.value.code or 0), out, told)

    return run_command
