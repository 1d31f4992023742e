"""What the benchmarks share: texts, the machine they ran on, and a running service."""

import json
import os
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from core.config import Settings
from launcher.interrupts import Interrupts
from launcher.stack import Stack, free_port

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "sentence-transformers", "openvino", "numpy", "celery", "redis")

SHORT_WORDS, PASSAGE_WORDS = 13, 150


def corpora(size: int) -> dict[str, list[str]]:
    """Three corpora of the words of `examples/alice.txt`: short texts of 13 words, passages of 150 (about 18 and 205 tokens of
    all-MiniLM-L6-v2), and a mix of its own paragraphs, which have 1 to 190. `size` is the number of short texts and of
    paragraphs; passages are a tenth of it. Beyond the end of the book it begins again, one word later.
    """
    book = (ROOT / "examples" / "alice.txt").read_text()
    words = book.split()
    paragraphs = [re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", book)]
    return {
        "short": _windows(words, SHORT_WORDS, size),
        "passages": _windows(words, PASSAGE_WORDS, max(1, size // 10)),
        "mixed": [paragraphs[n % len(paragraphs)] for n in range(size // 3)],
    }


def _windows(words: Sequence[str], width: int, count: int) -> list[str]:
    texts, start = [], 0
    for _ in range(count):
        if start + width > len(words):
            start = (start + width) % len(words) % width + 1
        texts.append(" ".join(words[start : start + width]))
        start += width
    return texts


def machine() -> dict[str, Any]:
    """Processor, versions and date, as every result states them."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())
        model = found.group(1) if found else model
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def matrix_rate(seconds: float = 1.0) -> float:
    """GFLOP/s of a float32 matrix product of 1,024 × 1,024 in torch: the machine's own limit."""
    import torch

    left, right = torch.rand(1024, 1024), torch.rand(1024, 1024)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        torch.mm(left, right)
        best = max(best, 2 * 1024**3 / (time.perf_counter() - started) / 1e9)
    return best


@contextmanager
def service(**environ: str) -> Iterator[Stack]:
    """The whole service as users run it, ready to work: Redis, the API and one worker, with settings added."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings.from_env(environ)
        interrupts = Interrupts()
        stack = Stack(
            settings,
            dict(os.environ) | environ,
            Path(folder),
            port=free_port(settings.api_host),
            queues="cpu",
            show=lambda name, line: None,
            interrupts=interrupts,
        )
        with stack:
            stack.wait_for_worker(300)
            yield stack


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def save(name: str, found: dict[str, Any]) -> Path:
    """Write a result as JSON into `bench/results`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    return path


def heading(title: str, facts: dict[str, Any]) -> None:
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    print(f"{title}\n{facts['cpu']}, {facts['cpus']} CPUs, Python {facts['python']}, {versions}, {facts['date']}\n", flush=True)
