"""How fast a result is read in each format, and how much memory the API needs for it.

    python -m bench.downloads [--inputs 100000] [--dimensions 384] [--rounds 3]

One ended job of random vectors. Each row has an API of its own, which is asked `rounds` times, by one client on the same machine:
the median, and the most memory of the process that answers, with its imports. `resumed` is the second half of the npy file.
"""

import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from bench.ledger import print_table, server_version
from bench.redis_memory import commit_all
from bench.sampling import Sampler
from bench.setting import ROOT, heading, machine, median, save
from core.ledger import Ledger, connect
from launcher.redis_server import RedisServer
from launcher.stack import free_port

HOST = "127.0.0.1"
READ_BYTES = 2**20
RESULTS = {
    "json": "result?format=json",
    "base64": "result?format=base64",
    "ndjson": "result?format=ndjson",
    "npy": "result?format=npy",
    "npy, resumed": "result?format=npy",
    "npy float16": "result?format=npy&dtype=float16",
    "npy int8": "result?format=npy&dtype=int8",
    "npy binary": "result?format=npy&dtype=binary",
    "arrow": "result?format=arrow",
    "parquet": "result?format=parquet",
    "parquet int8": "result?format=parquet&dtype=int8",
    "manifest": "manifest",
}


@contextmanager
def api(redis_url: str) -> Iterator[tuple[int, psutil.Process]]:
    """A running API: its port and the process that answers."""
    port = free_port(HOST)
    environ = dict(os.environ) | {"REDIS_URL": redis_url, "API_HOST": HOST, "API_PORT": str(port), "LOG_LEVEL": "WARNING"}
    with subprocess.Popen([sys.executable, "-m", "api"], cwd=ROOT, env=environ) as process:
        try:
            while True:
                try:
                    fetch(port, "GET", "/healthz")
                    break
                except OSError:
                    assert process.poll() is None, "the API ended"
                    time.sleep(0.05)
            yield port, psutil.Process(process.pid).children()[0]
        finally:
            process.terminate()


def fetch(port: int, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """The size of the answer and, if it is small, the answer."""
    connection = http.client.HTTPConnection(HOST, port, timeout=600)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        assert answer.status < 300, answer.read()
        size, first = 0, b""
        while piece := answer.read(READ_BYTES):
            size += len(piece)
            first = first or piece
        return size, first
    finally:
        connection.close()


def new_job(ledger: Ledger, port: int, inputs: int, dimensions: int) -> str:
    """An ended job of random vectors."""
    lines = "".join(f'{{"id": "document-{n}", "text": "text {n}"}}\n' for n in range(inputs)).encode()
    _, answer = fetch(port, "POST", "/v1/jobs", lines, {"Content-Type": "application/x-ndjson"})
    commit_all(ledger, dimensions)
    return str(json.loads(answer)["id"])


def measure(redis_url: str, job: str, name: str, inputs: int, size: int, rounds: int) -> dict[str, Any]:
    """A row. `size` is that of the npy file."""
    headers = {"Range": f"bytes={size // 2}-"} if name == "npy, resumed" else {}
    with api(redis_url) as (port, process):
        before, seconds = process.memory_info().rss, []
        with Sampler({"api": process}, seconds=0.02) as memory:
            for _ in range(rounds):
                started = time.perf_counter()
                received, _ = fetch(port, "GET", f"/v1/jobs/{job}/{RESULTS[name]}", headers=headers)
                seconds.append(time.perf_counter() - started)
    taken = median(seconds)
    return {
        "format": name,
        "megabytes": round(received / 1e6, 1),
        "seconds": round(taken, 3),
        "megabytes_per_second": round(received / taken / 1e6, 1),
        "vectors_per_second": round(inputs * (0.5 if headers else 1) / taken),
        "api_start_megabytes": round(before / 1e6, 1),
        "api_peak_megabytes": round(memory.peaks()["api"] / 1e6, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="vectors of the job (%(default)s)")
    parser.add_argument("--dimensions", type=int, default=384, help="numbers in each (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="times that each is read (%(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file to write instead of bench/results/downloads.json")
    options = parser.parse_args()
    facts = machine()
    heading(f"Reading {options.inputs:,} vectors of {options.dimensions} numbers", facts)
    with tempfile.TemporaryDirectory(prefix="vector-api-bench-") as folder:
        facts["server"] = server_version(Path(folder))
        with RedisServer(Path(folder) / "redis", {"appendfsync": "no"}) as server:
            with api(server.url) as (port, _), connect(server.url, timeout_seconds=60, retries=0) as client:
                job = new_job(Ledger(client, "vector-api:"), port, options.inputs, options.dimensions)
                size, _ = fetch(port, "GET", f"/v1/jobs/{job}/result?format=npy")
            rows = [measure(server.url, job, name, options.inputs, size, options.rounds) for name in RESULTS]
    print_table(rows)
    found = {"machine": facts, "inputs": options.inputs, "dimensions": options.dimensions, "rounds": options.rounds, "rows": rows}
    save("downloads", found, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
