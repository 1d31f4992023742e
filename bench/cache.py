"""What the cache saves, and what it costs where nothing is in it.

    python -m bench.cache [--texts 2000] [--rounds 3]

First entries by themselves: bytes in Redis for each, as `CACHE_BYTES` counts them and as the server uses them, and how long
reading and writing them takes. Then two services take turns, one with the cache and one without, from the POST to the last byte
of the vectors. In each round the texts are new to both, come again unchanged, and come again with one in a hundred changed.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from bench.ledger import print_table, server_version
from bench.setting import corpora, effective, end_to_end, heading, machine, median, save, service
from core.ledger import Ledger, connect
from core.ledger.cache import AT_ONCE, Entries, Entry
from launcher.redis_server import RedisServer

PLENTY = 2**30
DIMENSIONS = (384, 768, 1024)
CHANGED_EVERY = 100
CASES = ("new", "again", "1 % changed")


def changed(texts: Sequence[str]) -> list[str]:
    return [f"{text} once more" if n % CHANGED_EVERY == 0 else text for n, text in enumerate(texts)]


def run_rounds(texts: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """Seconds of each case, without and with the cache, and the median of their ratios."""
    seconds: dict[tuple[str, str], list[float]] = {}
    with (
        service(DEVICE="cpu") as off,
        service(DEVICE="cpu", CACHE_BYTES=str(PLENTY)) as on,
        httpx.Client(base_url=off.url, timeout=600) as without,
        httpx.Client(base_url=on.url, timeout=600) as cached,
    ):
        clients = {"without": without, "with": cached}
        for client in clients.values():
            end_to_end(client, texts[:50])
        for number in range(rounds):
            own = [f"{text} {number}" for text in texts]
            first: dict[str, np.ndarray] = {}
            for case, inputs in zip(CASES, (own, own, changed(own)), strict=True):
                for name, client in reversed(clients.items()) if number % 2 else clients.items():
                    took, vectors = end_to_end(client, inputs)
                    seconds.setdefault((case, name), []).append(took)
                    if case == "again":
                        assert name == "without" or (vectors == first[name]).all(), "a hit is not what was computed"
                    first.setdefault(name, vectors)
    return [
        {
            "texts": case,
            "without_seconds": round(median(seconds[case, "without"]), 2),
            "with_seconds": round(median(seconds[case, "with"]), 2),
            "ratio": round(
                median([with_ / out for with_, out in zip(seconds[case, "with"], seconds[case, "without"], strict=True)]), 3
            ),
        }
        for case in CASES
    ]


def measure_entries(folder: Path, dimensions: int, count: int = 5000) -> dict[str, Any]:
    """Bytes for each entry, and milliseconds to look for 256 that are not there and to write so many: the disk is waited for."""
    with RedisServer(folder) as server, connect(server.url, timeout_seconds=60, retries=0) as client:
        entries = Entries(Ledger(client, "bench:"), PLENTY)
        before = client.info("memory")["used_memory"]
        find_ms, keep_ms = list[float](), list[float]()
        for _ in range(0, count, AT_ONCE):
            new = {os.urandom(16): Entry(os.urandom(4 * dimensions), 20, False) for _ in range(AT_ONCE)}
            times = [time.perf_counter()]
            for step in (lambda new=new: entries.find(list(new)), lambda new=new: entries.keep(new)):
                step()
                times.append(time.perf_counter())
            find_ms.append((times[1] - times[0]) * 1000)
            keep_ms.append((times[2] - times[1]) * 1000)
        memory = client.info("memory")
        held, counted = entries.size()
    return {
        "dimensions": dimensions,
        "vector bytes": 4 * dimensions,
        "counted": round(counted / held),
        f"used ({memory['mem_allocator']})": round((memory["used_memory"] - before) / held),
        "vectors in 1 GB": round(10**9 * held / counted),
        f"look for {AT_ONCE}, ms": round(median(find_ms), 1),
        f"write {AT_ONCE}, ms": round(median(keep_ms), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=2000, help="short texts in a job (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of each measurement (%(default)s)")
    options = parser.parse_args()
    facts = machine()
    heading("The cache", facts)
    with tempfile.TemporaryDirectory(prefix="vector-api-bench-") as name:
        facts["server"] = server_version(Path(name))
        entries = [measure_entries(Path(name) / str(dimensions), dimensions) for dimensions in DIMENSIONS]
    print_table(entries)
    print()
    rows = run_rounds(corpora(options.texts)["short"], options.rounds)
    print_table(rows)
    save(
        "cache",
        {
            "machine": facts,
            "settings": effective({"DEVICE": "cpu", "CACHE_BYTES": str(PLENTY)}),
            "texts": options.texts,
            "rounds": options.rounds,
            "rows": rows,
            "entries": entries,
        },
    )


if __name__ == "__main__":
    main()
