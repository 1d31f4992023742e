"""Whether memory stays flat: that of the worker, the API and Redis while one large job is sent, embedded and read.

    python -m bench.memory [--texts 100000]

One NDJSON job of texts of 2 to 4 words goes through the whole service with the real model; then its vectors are read as npy.
Resident memory is taken every second. Growth counts from the tenth part of the job on, when every buffer has been in use.
"""

import argparse
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from bench.sampling import Sampler, roles
from bench.setting import ROOT, effective, heading, machine, save, service

WORDS = (2, 3, 4)
ENVIRON = {"DEVICE": "cpu"}
API_LIMIT_BYTES = 80_000_000
POINTS = 200
"""Samples that are kept for the picture."""


def short_texts(count: int) -> Iterator[str]:
    """So many texts of 2, 3, 4, 2, … words of `examples/alice.txt`, again from its beginning where it ends."""
    words = itertools.cycle(re.findall(r"\w+", (ROOT / "examples" / "alice.txt").read_text()))
    for width in itertools.islice(itertools.cycle(WORDS), count):
        yield " ".join(itertools.islice(words, width))


def run_job(client: httpx.Client, texts: int, note: Callable[[str, int], None]) -> None:
    """Send, wait, read, and call `note` with the part that runs and the number of texts that are done."""
    lines = ((json.dumps(text) + "\n").encode() for text in short_texts(texts))
    note("sending", 0)
    answer = client.post("/v1/jobs", content=lines, headers={"Content-Type": "application/x-ndjson"})
    job = answer.raise_for_status().json()
    while job["status"] not in ("succeeded", "failed", "cancelled"):
        note("embedding", job["counts"]["done"])
        time.sleep(0.5)
        job = client.get(f"/v1/jobs/{job['id']}").raise_for_status().json()
    assert job["status"] == "succeeded", job
    assert job["counts"]["done"] == texts, job
    note("reading", texts)
    with client.stream("GET", f"/v1/jobs/{job['id']}/result", params={"format": "npy"}) as result:
        result.raise_for_status()
        size = sum(len(part) for part in result.iter_bytes())
    assert size > texts * job["dimensions"] * 4, f"{size} bytes for {texts} vectors"
    note("ended", texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=100_000, help="texts of the job (%(default)s)")
    options = parser.parse_args()
    if options.texts < 10:
        parser.error("--texts must be at least 10")
    facts = machine()
    heading(f"Memory over {options.texts:,} texts", facts)
    notes: list[tuple[float, str, int]] = []
    with (
        service(**ENVIRON) as stack,
        httpx.Client(base_url=stack.url, timeout=600) as client,
        Sampler(roles(stack), seconds=1) as memory,
    ):
        run_job(client, options.texts, lambda part, done: notes.append((time.monotonic(), part, done)))
        time.sleep(1.5)  # one sample more
    results: dict[str, Any] = {"machine": facts, "settings": effective(ENVIRON), "texts": options.texts}
    results |= summary(memory, notes, options.texts)
    print(f"{'MB':14} {'start':>8} {'10 %':>8} {'50 %':>8} {'end':>8} {'peak':>8} {'growth after 10 %':>18}")
    for name, row in results["processes"].items():
        shown = " ".join(f"{row[key] / 1e6:8.1f}" for key in ("start", "at_10_percent", "at_50_percent", "end", "peak"))
        print(f"{name:14} {shown} {row['growth_after_10_percent'] / 1e6:+18.1f}")
    seconds = results["seconds"]
    print("\n" + ", ".join(f"{part} {seconds[part]:.1f} s" for part in seconds))
    api = max(row["peak"] for name, row in results["processes"].items() if name.startswith("api"))
    results["api_limit_bytes"] = API_LIMIT_BYTES
    print(f"API: {api / 1e6:.1f} MB at most, {'below' if api < API_LIMIT_BYTES else 'ABOVE'} {API_LIMIT_BYTES / 1e6:.0f} MB")
    save("memory", results)


def summary(memory: Sampler, notes: list[tuple[float, str, int]], texts: int) -> dict[str, Any]:
    """Seconds of each part, each process' memory at some points of the job, and about POINTS samples.

    Growth is from the first tenth of the job to its end, before the result is read.
    """
    first = notes[0][0]
    began = {part: min(when for when, named, _ in notes if named == part) for _, part, _ in notes}
    ends = [*list(began.values())[1:], began["ended"]]

    def when(share: float) -> float:
        return next(moment for moment, _, done in notes if done >= share * texts)

    def at(moment: float, name: str) -> int:
        """The last sample before the moment, or the first of all."""
        before = [found[name] for time_, found in memory.samples if time_ <= moment]
        return before[-1] if before else memory.samples[0][1][name]

    processes = {}
    for name, peak in memory.peaks().items():
        tenth, half, end = (at(moment, name) for moment in (when(0.1), when(0.5), when(1.0)))
        processes[name] = {
            "start": memory.samples[0][1][name],
            "at_10_percent": tenth,
            "at_50_percent": half,
            "end": end,
            "peak": peak,
            "growth_after_10_percent": end - tenth,
        }
    return {
        "seconds": {
            part: round(end - start, 1) for (part, start), end in zip(began.items(), ends, strict=True) if part != "ended"
        },
        "processes": processes,
        "samples": [
            {"seconds": round(moment - first, 1), "done": max((done for when_, _, done in notes if when_ <= moment), default=0)}
            | found
            for moment, found in memory.samples[:: max(1, len(memory.samples) // POINTS)]
        ],
    }


if __name__ == "__main__":
    main()
