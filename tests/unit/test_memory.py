"""Main memory as the control group tells of it, or the machine."""

from pathlib import Path

import pytest

from worker.memory import main_memory

GIB = 2**30
MEMINFO = f"MemTotal: {16 * GIB // 1024} kB\nMemFree: 1 kB\nMemAvailable: {12 * GIB // 1024} kB\n"
MACHINE = {"memory_used_bytes": 4 * GIB, "memory_limit_bytes": 16 * GIB}
CONTAINER = {"memory_used_bytes": 2 * GIB, "memory_limit_bytes": 3 * GIB}

V2, V1 = "0::/app.slice/a.service\n", "5:cpu:/b\n4:memory:/docker/1a2b\n0::/\n"


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def group(limit: str = str(3 * GIB), *, version: int = 2) -> dict[str, str]:
    """The files of a group that uses 2.5 GiB, of which 0.5 are files that can be dropped."""
    used = str(2 * GIB + GIB // 2)
    if version == 2:
        return {"memory.max": limit, "memory.current": used, "memory.stat": f"anon 1\ninactive_file {GIB // 2}\n"}
    return {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": used, "memory.stat": f"total_inactive_file {GIB // 2}\n"}


CASES = {
    "own group": (V2, "app.slice/a.service", group(), CONTAINER),
    "container, whose group is at the top": (V2, "", group(), CONTAINER),
    "version 1": (V1, "memory/docker/1a2b", group(version=1), CONTAINER),
    "version 1 in a container": (V1, "memory", group(version=1), CONTAINER),
    "no limit": (V2, "app.slice/a.service", group("max"), MACHINE),
    "no limit, version 1": (V1, "memory", group("9223372036854771712", version=1), MACHINE),
    "no such file": (V2, "", {}, MACHINE),
}


@pytest.mark.parametrize(("own", "at", "files", "expected"), CASES.values(), ids=CASES.keys())
def test_container_is_asked_before_the_machine(
    tmp_path: Path, own: str, at: str, files: dict[str, str], expected: dict[str, int]
) -> None:
    cgroups, proc = tmp_path / "cgroup", tmp_path / "proc"
    write(proc, {"meminfo": MEMINFO, "self/cgroup": own})
    write(cgroups / at, files)
    assert main_memory(cgroups, proc) == expected


def test_system_that_tells_nothing_has_no_figures(tmp_path: Path) -> None:
    assert main_memory(tmp_path, tmp_path) == {}
