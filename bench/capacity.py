"""What one Redis carries, computed from the results of the other benchmarks: the tables of docs/scaling.md.

    python -m bench.capacity

Reads `bench/results/{redis_memory,ledger,throughput,scale_out}.json` and measures nothing itself.
"""

import json
import sys
from typing import Any

from bench.setting import RESULTS

GIB = 2**30
DAY_SECONDS = 86_400


def load(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    if not path.exists():
        sys.exit(f"{path} is missing: run `python -m bench.{name}` first")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def print_rows(heads: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    for cells in (heads, ("---",) * len(heads), *rows):
        print("| " + " | ".join(map(str, cells)) + " |")
    print()


def main() -> None:
    memory, ledger, throughput, scale_out = map(load, ("redis_memory", "ledger", "throughput", "scale_out"))
    corpora = throughput["corpora"]
    speeds = {18: corpora["short"]["texts_per_second"]["service"], 200: corpora["passages"]["texts_per_second"]["service"]}

    print("Memory\n")
    rows: list[tuple[object, ...]] = []
    for row in memory["rows"]:
        day = speeds[row["tokens"]] * DAY_SECONDS * row["done_bytes"] / GIB
        case = tuple(row[name] for name in ("tokens", "job_inputs", "dimensions", "shard_inputs", "RESULT_STORE"))
        waiting, done = (f"{GIB / row[name] / 1e6:,.2f} M" for name in ("waiting_bytes", "done_bytes"))
        rows.append((*case, row["waiting_bytes"], row["done_bytes"], waiting, done, f"{day:.2f} GiB"))
    heads = ("tokens", "texts in a job", "dimensions", "shard inputs", "RESULT_STORE", "bytes waiting", "bytes done")
    print_rows((*heads, "texts waiting in 1 GiB", "results in 1 GiB", "results of a day"), rows)
    shown = ", ".join(f"{speed}/s with {tokens} tokens" for tokens, speed in speeds.items())
    print(f"A day of one CPU worker with the default model: {shown}\n")

    print("Ledger\n")
    rows = []
    for row in ledger["shards"]:
        workers = row["inputs_per_second"] / speeds[18]
        figures = (row["shards_per_second"], f"{row['inputs_per_second']:,}", row["vector_megabytes_per_second"])
        rows.append((row["appendfsync"], row["shard_inputs"], row["dimensions"], *figures, f"{workers:.0f}"))
    heads = ("appendfsync", "shard inputs", "dimensions", "shards/s", "inputs/s", "MB/s of vectors", "CPU workers it feeds")
    print_rows(heads, rows)

    print("Scaling out\n")
    rows = [
        (work, row["workers"], f"{row['inputs_per_second']:,.0f}", f"{row['efficiency']:.2f}")
        for work, found in scale_out["work"].items()
        for row in found
    ]
    print_rows(("work", "workers", "inputs/s", "efficiency"), rows)
    for name, result in (("redis_memory", memory), ("ledger", ledger), ("throughput", throughput), ("scale_out", scale_out)):
        facts = result["machine"]
        print(
            f"{name}: {facts['cpu']}, {facts['cpus']} CPUs, Python {facts['python']}, {facts.get('server', '')} {facts['date']}"
        )


if __name__ == "__main__":
    main()
