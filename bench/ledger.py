"""How many jobs per second the ledger takes, and how many inputs it hands out and takes back.

    python -m bench.ledger [--seconds 3]

Clients submit jobs of one short text; then one worker with an engine that costs nothing claims and commits, first those jobs,
then jobs of full shards. After that, what one Redis takes in: shards of several sizes, vectors of several lengths.
The server is our own, on a Unix socket, with its data on this machine's disk.
"""

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.submission import GROUP_SHARDS
from bench.setting import heading, machine, save
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
    if len(shards) > GROUP_SHARDS:
        ledger.stage(job_id, shards[:-GROUP_SHARDS])
    inputs = sum(shard.span.count for shard in shards)
    job = NewJob(job_id, "bench", "cpu", Lane.BULK, "fake", JobOptions(), {}, 600, inputs, len(shards))
    ledger.submit(job, shards[-GROUP_SHARDS:], max_waiting_inputs=10**9)


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


def measure(folder: Path, fsync: str, seconds: float) -> dict[str, Any]:
    """One row of the result."""
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
        "submitted": [
            {
                "clients": clients,
                "jobs_per_second": round(found.rate, 1),
                "p50_ms": round(found.milliseconds(50), 2),
                "p99_ms": round(found.milliseconds(99), 2),
            }
            for clients, found in ((1, one), (THREADS, many))
        ],
        "drained_inputs_per_second": {"shards of 1": round(small, 1), f"shards of {SHARD_INPUTS}": round(large, 1)},
    }


def cells(row: dict[str, Any]) -> dict[str, str]:
    """A row of the table; heads that end with a space show without it."""
    one, many = row["submitted"]
    small, large = row["drained_inputs_per_second"].values()
    return {
        "appendfsync": row["appendfsync"],
        "jobs/s, 1 client": f"{one['jobs_per_second']:,.0f}",
        "p50 / p99 ms": f"{one['p50_ms']:.2f} / {one['p99_ms']:.2f}",
        f"jobs/s, {THREADS} clients": f"{many['jobs_per_second']:,.0f}",
        "p50 / p99 ms ": f"{many['p50_ms']:.2f} / {many['p99_ms']:.2f}",
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


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    shown = [
        {head: f"{value:,}" if isinstance(value, int | float) else str(value) for head, value in row.items()} for row in rows
    ]
    widths = {head: max(len(head.strip()), *(len(row[head]) for row in shown)) for head in shown[0]}
    for line in ({head: head.strip() for head in widths}, {head: "-" * width for head, width in widths.items()}, *shown):
        print("| " + " | ".join(line[head].rjust(width) for head, width in widths.items()) + " |")


def server_version(folder: Path) -> str:
    server = RedisServer(folder / "version")
    with server, connect(server.url, timeout_seconds=5, retries=0) as client:
        found = client.info("server")
    return f"{found.get('server_name', 'redis')} {found.get('valkey_version', found['redis_version'])}"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.ledger", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="how long clients submit; draining takes up to twice as long")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory(prefix="vector-api-bench-") as name:
        folder = Path(name)
        facts = machine() | {"server": server_version(folder)}
        heading(f"The ledger alone: {facts['server']}", facts)
        print(f"jobs of one text of {len(TEXT)} characters; vectors of {DIMENSIONS} float32; claims of {CLAIM_BYTES:,} bytes\n")
        found = [measure(folder, fsync, seconds) for fsync in ("always", "everysec")]
        sizes = [row for fsync in ("always", "everysec") for row in measure_sizes(folder, fsync, seconds)]
    print_table([cells(row) for row in found])
    print()
    print_table(sizes)
    save("ledger", {"machine": facts, "seconds": seconds, "claim_bytes": CLAIM_BYTES, "rows": found, "shards": sizes})
    return 0


if __name__ == "__main__":
    sys.exit(main())
