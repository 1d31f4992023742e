"""Find the device of `DEVICE`, and the CPUs this process may use. To be called in the worker's child: touching CUDA before a fork
breaks it."""

import contextlib
import os
import platform
import resource
import sys
from pathlib import Path

import torch

from core.errors import ModelUnavailable


def resolve_device(wanted: str) -> str:
    """`cpu`, `cuda:N` or `mps`. `auto` takes the first of cuda, mps, cpu that is there.

    Raises:
        ModelUnavailable: the device asked for is absent; the message says what was found.
    """
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    found = cuda + (["mps"] if torch.backends.mps.is_available() else []) + ["cpu"]
    if wanted == "auto":
        return found[0]
    exact = "cuda:0" if wanted == "cuda" else wanted
    if exact in found:
        return exact
    build = f"torch {torch.__version__}, built for " + (f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA")
    raise ModelUnavailable(f"DEVICE={wanted} is absent; found: {', '.join(found)} ({build})", param="DEVICE")


def device_name(device: str) -> str:
    """What its maker calls a device, or the kind of processor where nothing tells."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def usable_cpus() -> int:
    """CPUs this process may use: its affinity, cut to the container's quota. Torch would take the host's cores."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, _quota_cpus(Path("/sys/fs/cgroup")) or affinity))


def _quota_cpus(root: Path) -> int | None:
    """The quota of the control group, version 2 or 1, or None without one."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return None
    return None if quota in ("max", "-1") else max(1, int(quota) // int(period))


def resident_bytes() -> int:
    """Memory of this process that lies in RAM; its peak where the system does not tell the present value."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
