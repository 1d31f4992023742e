"""Find the facts out. Each probe takes seconds at most and never raises: what cannot be found is None, or an error in words."""

import csv
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from redis import RedisError

from core.config import Settings
from core.errors import InvalidSetting, ResultLost, ResultStoreUnavailable
from core.keys import Keys
from core.ledger import connect
from core.models import Models
from core.result_store import ResultStore
from core.sentinel import SentinelUrl
from doctor.facts import Driver, Gpu, Libraries, Machine, Model, RedisServer, Store, Torch

ROOT = Path(__file__).parent.parent
LIBRARY_SECONDS = 120
SMI_SECONDS = 20
REDIS_SECONDS = 3.0
STORE_SECONDS = 5.0
MIB = 2**20


def probe_machine() -> Machine:
    return Machine(
        architecture=platform.machine(),
        cpu_features=_cpu_features(_read(Path("/proc/cpuinfo"))),
        cpus=os.cpu_count() or 1,
        in_container=Path("/.dockerenv").exists()
        or Path("/run/.containerenv").exists()
        or "KUBERNETES_SERVICE_HOST" in os.environ,
        docker=shutil.which("docker") is not None,
        container_toolkit=any(map(shutil.which, ("nvidia-ctk", "nvidia-container-runtime", "nvidia-container-runtime-hook"))),
    )


def _cpu_features(cpuinfo: str) -> frozenset[str] | None:
    """The words after `flags` (x86) or `Features` (ARM) of the first CPU."""
    for line in cpuinfo.splitlines():
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(words.split())
    return None


def probe_driver() -> Driver:
    """What `nvidia-smi` tells; without it, the version that the kernel's driver shows."""
    query = "--query-gpu=driver_version,name,compute_cap,memory.total,memory.free"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=SMI_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        shown = ""
    else:
        shown = done.stdout if done.returncode == 0 else ""
    return parse_smi(shown) or Driver(parse_kernel_driver(_read(Path("/proc/driver/nvidia/version"))))


def parse_smi(shown: str) -> Driver | None:
    """The driver and its GPUs, or None when there is no line of a GPU in it."""
    version, gpus = None, []
    for row in csv.reader(shown.splitlines(), skipinitialspace=True):
        if len(row) != 5:
            continue
        version = row[0]
        capability = tuple(map(int, row[2].split("."))) if row[2].replace(".", "").isdigit() else None
        total, free = (int(value) * MIB if value.isdigit() else None for value in row[3:])
        gpus.append(Gpu(row[1], capability, total, free))
    return Driver(version, tuple(gpus)) if gpus else None


def parse_kernel_driver(shown: str) -> str | None:
    """`580.82.07` of `NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.82.07  …`."""
    first = shown.partition("\n")[0]
    versions = [word for word in first.split() if "." in word and word.replace(".", "").isdigit()]
    return versions[0] if "NVRM version" in first and versions else None


def probe_redis(settings: Settings, *, named: bool) -> RedisServer:
    place = _place(settings.redis_url)
    try:
        with connect(settings.redis_url, timeout_seconds=REDIS_SECONDS, retries=1) as client:
            info: dict[str, Any] = client.info()
            before = time.time()
            seconds, microseconds = client.time()
            after = time.time()
    except (RedisError, OSError, ValueError) as error:
        return RedisServer(place, named, error=str(error).rstrip(".") or type(error).__name__)
    append_only = info.get("aof_enabled")
    return RedisServer(
        place,
        named,
        version=str(info.get("valkey_version") or info.get("redis_version") or "") or None,
        policy=info.get("maxmemory_policy"),
        append_only=None if append_only is None else bool(append_only),
        append_failed=info.get("aof_last_write_status", "ok") != "ok",
        used_bytes=int(info.get("used_memory", 0)),
        limit_bytes=int(info.get("maxmemory", 0)),
        skew_seconds=(before + after) / 2 - (seconds + microseconds / 1e6),
    )


def _place(url: str) -> str:
    """A REDIS_URL without user and password."""
    if sentinel := SentinelUrl.parse(url):
        return str(sentinel)
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"


def probe_keys(settings: Settings) -> Keys | InvalidSetting | None:
    """The API's keys, or what is wrong with their file."""
    try:
        return Keys.read(Path(settings.api_keys_file)) if settings.api_keys_file else None
    except InvalidSetting as error:
        return error


def probe_models(settings: Settings) -> Models | InvalidSetting | None:
    """The models of MODELS_FILE, or what is wrong with it."""
    try:
        return Models.of(settings) if settings.models_file else None
    except InvalidSetting as error:
        return error


def probe_store(settings: Settings) -> Store | None:
    """Write, read and remove a small object; None when results stay in Redis."""
    if settings.result_store == "redis":
        return None
    try:
        ResultStore(settings.result_store, timeout_seconds=STORE_SECONDS, retries=0).probe()
    except (ResultStoreUnavailable, ResultLost) as error:
        return Store(settings.result_store, error.message)
    return Store(settings.result_store)


def probe_libraries() -> Libraries:
    """What `library_probe` finds, in a process of its own."""
    if find_spec("torch") is None:
        return Libraries(installed=False)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "doctor.library_probe"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=LIBRARY_SECONDS,
            check=False,
        )
        return parse_libraries(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return Libraries(installed=True, error=f"no answer within {LIBRARY_SECONDS} s")
    except (IndexError, ValueError, KeyError, TypeError):
        lines = done.stderr.strip().splitlines()
        return Libraries(installed=True, error=lines[-1][:300] if lines else f"exit code {done.returncode}")


def parse_libraries(line: str) -> Libraries:
    """Libraries of the line of JSON that `library_probe` prints."""
    found = json.loads(line)
    gpus = tuple(Gpu(**gpu | {"capability": tuple(gpu["capability"])}) for gpu in found["torch"].pop("gpus"))
    others = tuple(Model(**other) for other in found["others"])
    return Libraries(installed=True, torch=Torch(gpus=gpus, **found["torch"]), model=Model(**found["model"]), others=others)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
