"""Main memory: how much may be used where this process runs, and how much is. What is above it is killed by the system."""

from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")

VERSION_2 = ("memory.max", "memory.current", "inactive_file")
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
"""Of a control group: its limit; what its processes use; which part of that, by `memory.stat`, are files that were read: the
system drops them before it kills."""


def main_memory(cgroups: Path = CGROUPS, proc: Path = PROC) -> dict[str, int]:
    """`memory_used_bytes` and `memory_limit_bytes` of the container; of the machine, if that has less or there is no limit.

    Nothing where neither tells, as on macOS.
    """
    machine = _of_machine(proc)
    for folder, names in _groups(cgroups, proc):
        found = _of_group(folder, *names)
        if found and found["memory_limit_bytes"] < machine.get("memory_limit_bytes", found["memory_limit_bytes"] + 1):
            return found
    return machine


def _groups(cgroups: Path, proc: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Where the files of this process's group may lie. In a container its own group is at the top, whatever its name says."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds in ("", "memory"):
            top, names = (cgroups / "memory", VERSION_1) if kinds else (cgroups, VERSION_2)
            yield top / path.lstrip("/"), names
            yield top, names


def _of_group(folder: Path, limit: str, used: str, droppable: str) -> dict[str, int] | None:
    """None without a limit."""
    try:
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        most, now = ((folder / name).read_text().strip() for name in (limit, used))
        return {
            "memory_used_bytes": max(0, int(now) - int(stat.get(droppable, 0))),
            "memory_limit_bytes": int(most),
        }
    except (OSError, ValueError):  # `max` is no number
        return None


def _of_machine(proc: Path) -> dict[str, int]:
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        found = {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines)}
        return {"memory_used_bytes": found["MemTotal"] - found["MemAvailable"], "memory_limit_bytes": found["MemTotal"]}
    except (OSError, ValueError, KeyError):
        return {}
