"""What keeps processes from outliving a launcher that is killed.

A launcher that ends in order stops its processes itself. One that is killed cannot, so it has a keeper: a small process that is
told of each process, and whose standard input ends when the launcher does. Linux can have the kernel do this
(PR_SET_PDEATHSIG), macOS cannot; this works on both, and lets Redis outlive the workers that still write to it.

The file is run by its path, by a bare interpreter, so it uses the standard library only.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

GRACE_SECONDS = 30
"""How long a process may take to end after SIGTERM; a worker finishes the batch it is at."""


class Keeper:
    """The launcher's side: tells the keeper which processes there are, in the order of their start."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
            start_new_session=True,  # whatever kills the launcher's group leaves the keeper
        )

    def watch(self, pid: int) -> None:
        """End this process, the leader of a process group, should the launcher be killed."""
        self._tell(f"+{pid}\n")

    def forget(self, pid: int) -> None:
        """The process has ended."""
        self._tell(f"-{pid}\n")

    def close(self) -> None:
        """End the keeper, and before it whatever it still watches."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # somebody killed the keeper; the launcher still stops its processes in order
            self._process.stdin.write(line)


def end(pid: int, grace_seconds: float) -> None:
    """SIGTERM a process, and after `grace_seconds` SIGKILL its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + grace_seconds
        while lives(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(pid, signal.SIGKILL)


def lives(pid: int) -> bool:
    """Whether the process is there and has not ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:  # Linux: in a container whose first process reaps nobody, an ended process stays as a zombie
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return True


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watched: list[int] = []
    for line in sys.stdin:
        pid = int(line[1:])
        if line[0] == "+":
            watched.append(pid)
        else:
            watched.remove(pid)
    for pid in reversed(watched):
        end(pid, GRACE_SECONDS)


if __name__ == "__main__":
    main()
