"""Jobs of one text: requests per second and latency with 1 to 128 clients, beside an idle worker and one with bulk work.

    python -m bench.small_jobs [--seconds 5]

Each client posts one short text with `?wait=30` and `"priority": "interactive"`, and posts the next when the vector is there.
The bare forward pass of the same texts, in process, is measured in the same run.
"""

import argparse
import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from bench.setting import corpora, effective, heading, machine, save, service

CLIENTS = (1, 8, 32, 128)
BULK_TEXTS = 200_000


Ask = Callable[[httpx.AsyncClient, str], Awaitable[None]]
"""Sends one text, and returns when all is there that the client waits for."""


async def submit(client: httpx.AsyncClient, text: str) -> None:
    """One interactive job; the answer holds its vector."""
    body = {"inputs": [text], "priority": "interactive"}
    answer = await client.post("/v1/jobs", params={"wait": 30}, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"][0]["embedding"]


async def load(url: str, ask: Ask, texts: list[str], clients: int, seconds: float) -> list[float]:
    """Latencies of all requests of so many clients, in seconds."""
    end = time.perf_counter() + seconds
    following = itertools.cycle(texts)
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:

        async def one() -> list[float]:
            found = []
            while time.perf_counter() < end:
                started = time.perf_counter()
                await ask(client, next(following))
                found.append(time.perf_counter() - started)
            return found

        return [latency for found in await asyncio.gather(*(one() for _ in range(clients))) for latency in found]


def percentile(values: list[float], percent: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))]


def forward_milliseconds(texts: list[str]) -> tuple[str, float]:
    """The engine's name, and its median time for one text, tokenising included."""
    from core.config import Settings
    from worker.engines.loading import load_engine

    engine = load_engine(Settings.from_env({"DEVICE": "cpu", "PARITY": "0"}))
    times = []
    for text in texts[:200]:
        started = time.perf_counter()
        engine.embed(engine.tokenize([text], None))
        times.append(time.perf_counter() - started)
    return engine.facts.engine, percentile(times, 50) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement (%(default)s)")
    options = parser.parse_args()
    facts = machine()
    heading("Jobs of one text", facts)
    texts = corpora(1000)["short"]
    engine, forward = forward_milliseconds(texts)
    print(f"bare forward pass of one text in {engine}: {forward:.1f} ms\n")
    environ = {"DEVICE": "cpu", "API_THREADS": "200", "MAX_STREAM_INPUTS": str(BULK_TEXTS)}
    results: dict[str, Any] = {"machine": facts, "settings": effective(environ), "engine": engine}
    results |= {"forward_ms": round(forward, 2), "rows": []}
    with service(**environ) as stack:
        print(f"{'beside':6} {'clients':>7} {'jobs/s':>8} {'p50 ms':>8} {'p99 ms':>8}")
        for beside in ("idle", "bulk"):
            if beside == "bulk":
                lines = itertools.islice(itertools.cycle(texts), BULK_TEXTS)
                body = "\n".join(json.dumps(text) for text in lines).encode()
                headers = {"Content-Type": "application/x-ndjson"}
                httpx.post(f"{stack.url}/v1/jobs", content=body, headers=headers, timeout=60).raise_for_status()
            for clients in CLIENTS:
                found = asyncio.run(load(stack.url, submit, texts, clients, options.seconds))
                row = {
                    "beside": beside,
                    "clients": clients,
                    "jobs_per_second": round(len(found) / options.seconds, 1),
                    "p50_ms": round(percentile(found, 50) * 1000, 1),
                    "p99_ms": round(percentile(found, 99) * 1000, 1),
                }
                results["rows"].append(row)
                print("{beside:6} {clients:7} {jobs_per_second:8.1f} {p50_ms:8.1f} {p99_ms:8.1f}".format(**row), flush=True)
    save("small_jobs", results)


if __name__ == "__main__":
    main()
