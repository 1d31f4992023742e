"""How long `/metrics` takes, and `/v1/queues`, which the dashboard asks: with an empty ledger, with 10,000 jobs in it, and with
the reports of 50 workers beside them.

    python -m bench.metrics [--jobs 10000] [--workers 50] [--requests 300]

Half of the jobs are ended and kept, half of them wait, as no worker takes from their queue. The other workers are copies of the
one's report under other names. One client asks, one request after the other, over one connection; the service is as users run it,
its worker with nothing to do.
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx

from bench.setting import corpora, effective, heading, machine, median, save, service
from bench.small_jobs import percentile
from core.config import Settings
from core.ledger import Ledger, connect

CLIENTS = 8
PATHS = ("/metrics", "/v1/queues")
WARM_UP = 20


def fill(client: httpx.Client, jobs: int) -> None:
    """So many jobs of one text; returns when the half that is to end has ended."""
    texts = corpora(1000)["short"]

    def submit(n: int) -> None:
        body = {
            "inputs": [texts[n % len(texts)]],
            "queue": ("cpu", "gpu")[n % 2],
            "priority": ("bulk", "interactive")[n % 3 == 0],
        }
        client.post("/v1/jobs", json=body).raise_for_status()

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(submit, range(jobs)))
    while client.get("/v1/queues").json()["totals"]["jobs"] != {"queued": jobs // 2, "running": 0}:
        time.sleep(0.2)


def multiply(redis_url: str, workers: int) -> None:
    """Have so many workers in the ledger, all alike."""
    ledger = Ledger(connect(redis_url, timeout_seconds=5, retries=2), Settings().redis_prefix)
    (worker,) = ledger.workers()
    for n in range(1, workers):
        ledger.report(replace(worker, name=f"{worker.name}-{n}"), lifetime_seconds=3600)


def measure(client: httpx.Client, path: str, requests: int) -> dict[str, Any]:
    """One row of the result."""
    found = []
    for _ in range(WARM_UP + requests):
        started = time.perf_counter()
        answer = client.get(path)
        found.append(time.perf_counter() - started)
        assert answer.status_code == 200, answer.text
    found = found[WARM_UP:]
    times = {"median_ms": median(found), "p99_ms": percentile(found, 99)}
    return {"path": path} | {name: round(value * 1000, 2) for name, value in times.items()} | {"bytes": len(answer.content)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000, help="in the ledger (%(default)s)")
    parser.add_argument("--workers", type=int, default=50, help="in the last rows (%(default)s)")
    parser.add_argument("--requests", type=int, default=300, help="of each row (%(default)s)")
    options = parser.parse_args()
    facts = machine()
    heading("Reading the figures", facts)
    environ = {"DEVICE": "cpu"}
    rows = []
    print(f"{'jobs':>6} {'workers':>7} {'path':12} {'median ms':>9} {'99 % ms':>8} {'bytes':>7}")
    with service(**environ) as stack, httpx.Client(base_url=stack.url, timeout=60) as client:
        for jobs, workers in ((0, 1), (options.jobs, 1), (options.jobs, options.workers)):
            if jobs and not rows[-1]["jobs"]:
                fill(client, jobs)
            multiply(stack.own_redis_url or Settings.from_env().redis_url, workers)
            for path in PATHS:
                rows.append({"jobs": jobs, "workers": workers} | measure(client, path, options.requests))
                line = "{jobs:6} {workers:7} {path:12} {median_ms:9.2f} {p99_ms:8.2f} {bytes:7}"
                print(line.format(**rows[-1]), flush=True)
    save("metrics", {"machine": facts, "settings": effective(environ), "requests": options.requests, "rows": rows})


if __name__ == "__main__":
    main()
