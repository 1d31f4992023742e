"""How many jobs per second the ledger takes, and how many inputs it hands out and takes back.

    python -m bench.ledger [--seconds 3]

Clients submit jobs of one short text; then one worker with an engine that costs nothing claims and commits, first those jobs,
then jobs of full shards. After that, what one Redis takes in: shards of several sizes, vectors of several lengths.
The server is our own, on a Unix socket, with its data on this machine's disk.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import redis

from bench.setting import machine, save
from core.blocks import ResultBlock
from core.jobs import JobOptions, Lane
from core.ledger import ClaimedShard, Committed, Ledger, NewJob, connect
from core.sharding import Input, cut
from launcher.redis_server import RedisServer

TEXT = "What a worker embeds here is a sentence of an ordinary length, about ninety characters long."
DIMENSIONS = 384
CLAIM_BYTES = 262_144
SHARD_INPUTS = 256
THREADS = 8
SHARDS_OF, VECTORS_OF = (64, 256, 1024), (384, 1024)
MOST_BYTES = 256 * 2**20
"""Vectors that one row of the second table may put into Redis."""


@dataclass(frozen=True)
class Submitted:
    jobs: int
    seconds: float
    latencies: tuple[float, ...]

    @property
    def rate(self) -> float:
        return self.jobs / self.seconds

    def milliseconds(self, percent: int) -> float:
        return statistics.quantiles(self.latencies, n=100)[percent - 1] * 1000


@dataclass(frozen=True)
class Drained:
    """What one worker claimed and committed."""

    shards: int
    inputs: int
    vector_bytes: int
    seconds: float


def submit(ledger: Ledger, texts: Iterable[str], shard_inputs: int = SHARD_INPUTS) -> None:
    """One job, as the API does it."""
    shards = list(cut((Input(text) for text in texts), max_inputs=shard_inputs, max_characters=2**20))
    job_id = uuid.uuid4().hex
    ledger.stage(job_id, shards)
    inputs = sum(shard.span.count for shard in shards)
    job = NewJob(job_id, "bench", "cpu", Lane.BULK, "fake", JobOptions(), {}, 600, inputs, len(shards))
    ledger.submit(job, max_waiting_inputs=10**9)


def submit_for(ledger: Ledger, seconds: float, threads: int) -> Submitted:
    """Jobs of one text from so many clients at once, each on a connection of its own."""
    start, stop = threading.Barrier(threads + 1), threading.Event()

    def client() -> list[float]:
        found = []
        start.wait()
        while not stop.is_set():
            started = time.perf_counter()
            submit(ledger, [TEXT])
            found.append(time.perf_counter() - started)
        return found

    with ThreadPoolExecutor(threads) as pool:
        clients = [pool.submit(client) for _ in range(threads)]
        start.wait()
        started = time.perf_counter()
        time.sleep(seconds)
        stop.set()
        latencies = [latency for done in clients for latency in done.result()]
        return Submitted(len(latencies), time.perf_counter() - started, tuple(latencies))


def drain_for(ledger: Ledger, seconds: float, dimensions: int = DIMENSIONS) -> Drained:
    """One worker claims and commits until nothing waits or the time is over."""
    shards, inputs, size, started = 0, 0, 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        claim = ledger.claim("cpu", "bench", lease_seconds=60, max_bytes=CLAIM_BYTES)
        if not claim.shards:
            break
        finished = [Committed(shard, _result(shard, dimensions)) for shard in claim.shards]
        assert all(ledger.commit("cpu", finished, device="cpu", engine="fake", dtype="float32", revision=""))
        shards += len(finished)
        inputs += sum(item.shard.span.count for item in finished)
        size += sum(len(item.result.vectors) for item in finished)
    return Drained(shards, inputs, size, time.perf_counter() - started)


def _result(shard: ClaimedShard, dimensions: int) -> ResultBlock:
    count = shard.span.count
    return ResultBlock(dimensions=dimensions, vectors=os.urandom(4 * dimensions) * count, tokens=(20,) * count)


def measure(folder: Path, fsync: str, seconds: float) -> dict[str, str]:
    """One row of the table."""
    server = RedisServer(folder / fsync, {"appendfsync": fsync})
    with server, connect(server.url, timeout_seconds=30, retries=0) as client:
        ledger = Ledger(client, "bench:")
        one, many = (submit_for(ledger, seconds, threads) for threads in (1, THREADS))
        small = _inputs_per_second(drain_for(ledger, 2 * seconds))
        client.flushall()
        for _ in range(50):
            submit(ledger, [TEXT] * 4 * SHARD_INPUTS)
        large = _inputs_per_second(drain_for(ledger, 2 * seconds))
    return {
        "appendfsync": fsync,
        "jobs/s, 1 client": f"{one.rate:,.0f}",
        "p50 / p99 ms": f"{one.milliseconds(50):.2f} / {one.milliseconds(99):.2f}",
        f"jobs/s, {THREADS} clients": f"{many.rate:,.0f}",
        "p50 / p99 ms ": f"{many.milliseconds(50):.2f} / {many.milliseconds(99):.2f}",
        "drained inputs/s, shards of 1": f"{small:,.0f}",
        f"drained inputs/s, shards of {SHARD_INPUTS}": f"{large:,.0f}",
        "ratio": f"{large / small:.0f}",
    }


def _inputs_per_second(drained: Drained) -> float:
    return drained.inputs / drained.seconds


def measure_sizes(folder: Path, fsync: str, seconds: float) -> list[dict[str, float | str]]:
    """Rows of the second table."""
    rows: list[dict[str, float | str]] = []
    server = RedisServer(folder / f"{fsync}-sizes", {"appendfsync": fsync})
    with server, connect(server.url, timeout_seconds=30, retries=0) as client:
        ledger = Ledger(client, "bench:")
        for shard_inputs in SHARDS_OF:
            for dimensions in VECTORS_OF:
                shards = MOST_BYTES // (4 * dimensions * shard_inputs)
                submit(ledger, [TEXT] * shards * shard_inputs, shard_inputs)
                found = drain_for(ledger, seconds, dimensions)
                client.flushall()
                rows.append(
                    {
                        "appendfsync": fsync,
                        "shard_inputs": shard_inputs,
                        "dimensions": dimensions,
                        "shards_per_second": round(found.shards / found.seconds, 1),
                        "inputs_per_second": round(found.inputs / found.seconds),
                        "vector_megabytes_per_second": round(found.vector_bytes / found.seconds / 1e6, 1),
                    }
                )
    return rows


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine())


def server_version(folder: Path) -> str:
    server = RedisServer(folder / "version")
    with server, connect(server.url, timeout_seconds=5, retries=0) as client:
        found = client.info("server")
    return f"{found.get('server_name', 'redis')} {found.get('valkey_version', found['redis_version'])}"


def print_table(rows: list[dict[str, str]]) -> None:
    widths = {head: max(len(head.strip()), *(len(row[head]) for row in rows)) for head in rows[0]}
    for cells in ({head: head.strip() for head in widths}, {head: "-" * width for head, width in widths.items()}, *rows):
        print("| " + " | ".join(cells[head].rjust(width) for head, width in widths.items()) + " |")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.ledger", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="how long clients submit; draining takes up to twice as long")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory(prefix="vector-api-bench-") as name:
        folder = Path(name)
        load = os.getloadavg()[0]
        print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {processor()}, {os.cpu_count()} CPUs, load before {load:.1f}")
        print(f"Python {platform.python_version()}, redis-py {redis.__version__}, {server_version(folder)}")
        print(f"jobs of one text of {len(TEXT)} characters; vectors of {DIMENSIONS} float32; claims of {CLAIM_BYTES:,} bytes")
        print()
        rows = [measure(folder, fsync, seconds) for fsync in ("always", "everysec")]
        print_table(rows)
        sizes = [row for fsync in ("always", "everysec") for row in measure_sizes(folder, fsync, seconds)]
        print()
        print_table(
            [{head: f"{value:,}" if head != "appendfsync" else str(value) for head, value in row.items()} for row in sizes]
        )
        facts = machine() | {"server": server_version(folder), "load_before": load}
        print(f"\nsaved in {save('ledger', {'machine': facts, 'jobs_of_one_text': rows, 'shards': sizes})}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
