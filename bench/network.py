"""Hosts of a network that exists on this machine only: network namespaces, joined by a bridge in one of their own.

Needs Linux, the right to make namespaces (root), and `ip` of iproute2. Nothing of it can be reached from outside, and processes
in a namespace reach nothing but each other.
"""

import contextlib
import ctypes
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

NETWORK = "10.213.77"
CLONE_NEWNET = 0x40000000


def why_not() -> str | None:
    """Why there can be no such network here; None where there can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces need Linux"
    if shutil.which("ip") is None:
        return "network namespaces need the command ip (package iproute2)"
    name = f"va-{uuid.uuid4().hex[:6]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces cannot be made here: {made.stderr.strip()}"
    _ip("netns", "del", name)
    return None


class Network:
    """Hosts by name, each with an address of its own; use it in a `with` block."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self._id = uuid.uuid4().hex[:6]
        self._switch = f"va-{self._id}"
        self._hosts = list(hosts)

    def address(self, host: str) -> str:
        return f"{NETWORK}.{1 + self._hosts.index(host)}"

    def command(self, host: str, *command: str) -> list[str]:
        """The command, to be run on a host. It takes the place of `ip`, so signals reach it."""
        return ["ip", "netns", "exec", self._namespace(host), *command]

    def unplug(self, host: str) -> None:
        """Take the host's cable out: packets are lost, and nobody is told."""
        _ip("-n", self._switch, "link", "set", self._port(host), "down")

    @contextlib.contextmanager
    def being_at(self, host: str) -> Iterator[None]:
        """Connections that this thread opens meanwhile are opened on the host."""
        with open("/proc/thread-self/ns/net", "rb") as here, open(f"/var/run/netns/{self._namespace(host)}", "rb") as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(here.fileno())

    def __enter__(self) -> Self:
        try:
            _ip("netns", "add", self._switch)
            _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
            _ip("-n", self._switch, "link", "set", "bridge", "up")
            for host in self._hosts:
                self._plug_in(host)
        except BaseException:
            self.close()
            raise
        return self

    def _plug_in(self, host: str) -> None:
        name, port = self._namespace(host), self._port(host)
        _ip("netns", "add", name)
        _ip("-n", self._switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("-n", self._switch, "link", "set", port, "master", "bridge", "up")
        _ip("-n", name, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        _ip("-n", name, "link", "set", "lo", "up")

    def _namespace(self, host: str) -> str:
        return f"{self._switch}-{host}"

    def _port(self, host: str) -> str:
        return f"port{self._hosts.index(host)}"

    def close(self) -> None:
        """Remove everything; a link goes with its namespace."""
        for name in (*map(self._namespace, self._hosts), self._switch):
            if Path("/var/run/netns", name).exists():
                _ip("netns", "del", name)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _enter(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "cannot enter the network namespace")
