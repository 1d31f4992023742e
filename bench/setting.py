"""What the benchmarks share: texts, the machine they ran on, a running service, and where results go."""

import io
import json
import os
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from core.config import Settings
from launcher.interrupts import Interrupts
from launcher.stack import Stack, free_port

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "sentence-transformers", "openvino", "numpy", "celery", "redis")

SHORT_WORDS, PASSAGE_WORDS = 13, 150


def corpora(size: int) -> dict[str, list[str]]:
    """Three corpora of the words of `examples/alice.txt`: short texts of 13 words, passages of 150 (about 18 and 205 tokens of
    all-MiniLM-L6-v2), and a mix of its own paragraphs, which have 1 to 190. `size` is the number of short texts; passages are a
    tenth of it and paragraphs a fifth, so that each takes a similar time. Beyond the end of the book it begins again, one word
    later.
    """
    book = (ROOT / "examples" / "alice.txt").read_text()
    words = book.split()
    paragraphs = [re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", book)]
    return {
        "short": _windows(words, SHORT_WORDS, size),
        "passages": _windows(words, PASSAGE_WORDS, max(1, size // 10)),
        "mixed": [paragraphs[n % len(paragraphs)] for n in range(max(1, size // 5))],
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


def effective(environ: Mapping[str, str]) -> dict[str, Any]:
    """The settings of a service that is started with `environ` added, but those that name a place or a secret."""
    settings = Settings.from_env(dict(os.environ) | environ)
    left_out = re.compile("redis|api_host|api_port|cache_dir|file")
    return {name: value for name, value in vars(settings).items() if not left_out.search(name)}


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


def end_to_end(client: httpx.Client, texts: Sequence[str]) -> tuple[float, np.ndarray]:
    """Seconds from the POST to the last byte of the vectors, and the vectors, float32, (len(texts), dimensions)."""
    body = "\n".join(json.dumps(text) for text in texts).encode()
    started = time.perf_counter()
    answer = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/x-ndjson"})
    job = answer.raise_for_status().json()
    while job["status"] not in ("succeeded", "failed"):
        job = client.get(f"/v1/jobs/{job['id']}", params={"wait": 30}).raise_for_status().json()
    content = client.get(f"/v1/jobs/{job['id']}/result", params={"format": "npy"}).raise_for_status().content
    return time.perf_counter() - started, np.load(io.BytesIO(content))


def worst_cosine(found: np.ndarray, wanted: np.ndarray) -> float:
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    return float(((found.astype(np.float64) * wanted).sum(axis=1) / norms).min())


def save(name: str, found: Mapping[str, Any], path: Path | None = None) -> None:
    """Write a result as JSON into `bench/results`, or to `path`, and its picture beside it; say so."""
    from bench import plot

    path = path or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    try:
        print(f"\nwritten to {path} and {plot.draw(name, path).name}")
    except ImportError:
        print(f"\nwritten to {path}; there is no picture without matplotlib")


def heading(title: str, facts: dict[str, Any]) -> None:
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    print(f"{title}\n{facts['cpu']}, {facts['cpus']} CPUs, Python {facts['python']}, {versions}, {facts['date']}\n", flush=True)
