"""What Redis needs for a waiting text and for a stored vector.

    python -m bench.redis_memory [--inputs 20000]

One job of many texts, or many of one, is submitted to an empty server, then all is committed. `MEMORY USAGE` of all keys is
added up between and after, and the size of the append-only file, rewritten, is read at the end. Vectors are random.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import redis

from bench.ledger import print_table, server_version, submit
from bench.setting import corpora, heading, machine, save
from core.blocks import ResultBlock
from core.ledger import Committed, Ledger, StoringLedger, connect
from core.result_store import ResultStore
from launcher.redis_server import RedisServer

DIMENSIONS = (384, 1024)
WORDS = {"short": 18, "passages": 200}
"""Corpora and their tokens per text, roughly."""


def used_bytes(client: redis.Redis) -> int:
    """What Redis uses for all keys, by its own count of each."""
    return sum(client.memory_usage(key, samples=0) or 0 for key in client.scan_iter())


def commit_all(ledger: Ledger, dimensions: int) -> None:
    random = np.random.default_rng(0)
    while shards := ledger.claim("cpu", "bench", lease_seconds=600, max_bytes=2**20).shards:
        finished = []
        for shard in shards:
            vectors = random.standard_normal((shard.span.count, dimensions), dtype=np.float32)
            result = ResultBlock(dimensions, vectors.tobytes(), tokens=(20,) * shard.span.count)
            finished.append(Committed(shard, result))
        assert all(ledger.commit("cpu", finished, device="cpu", engine="fake", dtype="float32", revision=""))


def file_bytes(client: redis.Redis, folder: Path) -> int:
    """Bytes of the append-only file after a rewrite."""

    def wait() -> None:
        while any(client.info("persistence")[f"aof_rewrite_{state}"] for state in ("in_progress", "scheduled")):
            time.sleep(0.1)

    wait()
    client.bgrewriteaof()
    wait()
    return sum(path.stat().st_size for path in (folder / "appendonlydir").iterdir())


def measure(
    folder: Path, texts: Sequence[str], job_inputs: int, dimensions: int, shard_inputs: int, store: ResultStore | None
) -> dict[str, float]:
    """Bytes for each input: the text itself, waiting in Redis, and done."""
    server = RedisServer(folder / "redis", {"appendfsync": "no"})
    with server, connect(server.url, timeout_seconds=60, retries=0) as client:
        ledger = Ledger(client, "bench:") if store is None else StoringLedger(client, "bench:", store)
        for start in range(0, len(texts), job_inputs):
            submit(ledger, texts[start : start + job_inputs], shard_inputs)
        waiting = used_bytes(client)
        commit_all(ledger, dimensions)
        done = used_bytes(client)
        file = file_bytes(client, folder / "redis")
    count = len(texts)
    return {
        "text_bytes": round(sum(len(text.encode()) for text in texts) / count),
        "waiting_bytes": round(waiting / count),
        "done_bytes": round(done / count, 1),
        "file_bytes": round(file / count, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000, help="texts in the job (%(default)s)")
    inputs = parser.parse_args().inputs
    facts = machine()
    heading("Redis' memory for each input", facts)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="vector-api-bench-") as name:
        facts["server"] = server_version(Path(name))
        texts = {kind: found for kind, found in corpora(inputs).items() if kind in WORDS}
        texts["passages"] = (texts["passages"] * 10)[:inputs]
        cases = [(kind, inputs, dimensions, 256, "redis") for kind in WORDS for dimensions in DIMENSIONS]
        cases += [("short", inputs, 384, 64, "redis"), ("short", 1, 384, 256, "redis"), ("short", inputs, 384, 256, "file")]
        for n, (kind, job_inputs, dimensions, shard_inputs, place) in enumerate(cases):
            folder = Path(name) / str(n)
            store = None if place == "redis" else ResultStore(f"file://{folder}/results", timeout_seconds=30, retries=0)
            chosen = texts[kind] if job_inputs > 1 else texts[kind][: inputs // 10]
            found = measure(folder, chosen, job_inputs, dimensions, shard_inputs, store)
            case = {"tokens": WORDS[kind], "job_inputs": job_inputs, "dimensions": dimensions, "shard_inputs": shard_inputs}
            rows.append(case | {"RESULT_STORE": place} | found)
    print(f"{facts['server']}, {inputs} inputs\n")
    print_table(rows)
    save("redis_memory", {"machine": facts, "inputs": inputs, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
