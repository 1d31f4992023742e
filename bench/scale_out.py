"""How throughput grows with workers: API, Redis and each worker on a host of their own (network namespaces).

    python -m bench.scale_out [--seconds 10] [--workers 1 2 4]

The engine is the tests' own, whose batches take a fixed time per token: first of the clock's, as if each worker had a device of
its own, then of a CPU's, where this machine's cores are the limit. Rates are of the time in which every worker was at work.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from bench.network import Network, why_not
from bench.setting import heading, machine, save
from core.ledger import Ledger, connect
from launcher.redis_server import RedisServer
from tests.processes import Process, wait_for

PORT = 8000
WORDS = 16
"""With its two special tokens a text has 18, as the short texts of the other benchmarks."""
SHARD_INPUTS = 64
TOKEN_SECONDS = {"clock": 0.0001, "cpu": 0.0002}
"""A worker makes 10,000 tokens/s of its own device, 5,000 of a core."""


class Service:
    """A running service on the hosts of a network."""

    def __init__(self, network: Network, folder: Path, environ: dict[str, str]) -> None:
        self.network = network
        self.folder = folder
        self.environ = environ | {"REDIS_URL": f"redis://{network.address('redis')}:6379/0"}
        self.url = f"http://{network.address('api')}:{PORT}"
        self.processes: list[Process] = []
        options = {"port": "6379", "bind": network.address("redis"), "protected-mode": "no", "appendfsync": "everysec"}
        self.server = RedisServer(folder / "redis", options, at=network.command("redis"))
        self.ledger = Ledger(connect(self.server.url, timeout_seconds=10, retries=2), "vector-api:")

    def start(self, host: str, *command: str, **environ: str) -> Process:
        full = self.network.command(host, sys.executable, "-m", *command)
        process = Process(full, self.environ | environ, self.folder / f"{host}.log")
        self.processes.append(process)
        return process

    def start_api(self) -> None:
        api = self.start("api", "api", API_HOST=self.network.address("api"), API_PORT=str(PORT), ALLOW_ANONYMOUS="1")

        def answers() -> bool:
            assert api.popen.poll() is None, api.output()
            try:
                with self.client() as client:
                    return client.get("/readyz").status_code == 200
            except httpx.TransportError:
                return False

        wait_for(answers, what="the API's answer")

    def start_workers(self, hosts: list[str], **environ: str) -> list[Process]:
        """Workers that have reported themselves."""
        options = ("worker", "-Q", "cpu", "--without-mingle", "--without-gossip")
        found = [self.start(host, "celery", "-A", "tests.fakes", *options, "-n", f"{host}@%h", **environ) for host in hosts]

        def all_report() -> bool:
            assert all(process.popen.poll() is None for process in found), [process.output()[-2000:] for process in found]
            return {worker.name.split("@")[0] for worker in self.ledger.workers()} >= set(hosts)

        wait_for(all_report, seconds=90, what="the workers' reports")
        return found

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    def submit(self, texts: list[str]) -> str:
        """A job, posted from the host `client`."""
        body = "\n".join(map(json.dumps, texts)).encode()
        with self.network.being_at("client"), self.client() as client:
            answer = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/x-ndjson"})
            return str(answer.raise_for_status().json()["id"])

    def close(self) -> None:
        for process in reversed(self.processes):
            process.kill_group()
        self.server.close()


@contextmanager
def service(workers: int, **environ: str) -> Iterator[Service]:
    """Redis and the API, on hosts of their own; hosts `worker0`, `worker1`, … are there for workers."""
    hosts = ["redis", "api", "client", *worker_hosts(workers)]
    with tempfile.TemporaryDirectory(prefix="vector-api-") as folder, Network(hosts) as network:
        found = Service(network, Path(folder), environ)
        try:
            found.server.start()
            with network.being_at("client"):
                found.start_api()
            yield found
        finally:
            found.close()


def worker_hosts(count: int) -> list[str]:
    return [f"worker{n}" for n in range(count)]


def rate(workers: int, seconds: float, work: str) -> float:
    """Inputs per second of so many workers."""
    per_second = 1 / (TOKEN_SECONDS[work] * (WORDS + 2))
    with service(workers, SHARD_INPUTS=str(SHARD_INPUTS)) as running:
        running.start_workers(worker_hosts(workers), FAKE_TOKEN_SECONDS=str(TOKEN_SECONDS[work]), FAKE_TOKEN_WORK=work)
        inputs = int((seconds + 10) * workers * per_second)
        job_id = running.submit([" ".join([f"{n}", *["word"] * (WORDS - 1)]) for n in range(inputs)])
        job = lambda: running.ledger.get(job_id, "default")  # noqa: E731
        wait_for(lambda: job().counts.done >= workers * 2 * per_second, seconds=60, what="all workers at work")
        started, before = time.perf_counter(), job().counts.done
        time.sleep(seconds)
        after = job()
        passed = time.perf_counter() - started
        assert not after.status.ended, "the job was too small to measure"
    return (after.counts.done - before) / passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each rate is measured (%(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    if reason := why_not():
        print(f"not measured: {reason}")
        return 1
    facts = machine()
    heading("Inputs per second by workers, each on a host of its own", facts)
    result: dict[str, Any] = {"machine": facts, "tokens_per_text": WORDS + 2, "shard_inputs": SHARD_INPUTS, "work": {}}
    for work, told in (("clock", "a device of its own for each"), ("cpu", f"work for this machine's {os.cpu_count()} CPUs")):
        print(f"{told}: {1 / TOKEN_SECONDS[work]:,.0f} tokens/s at most for each worker\n")
        print("| workers | inputs/s | efficiency |\n| --- | --- | --- |")
        rows: list[dict[str, float]] = []
        for workers in options.workers:
            found = rate(workers, options.seconds, work)
            alone = rows[0]["inputs_per_second"] / rows[0]["workers"] if rows else found / workers
            rows.append({"workers": workers, "inputs_per_second": found, "efficiency": found / workers / alone})
            print(f"| {workers} | {found:,.0f} | {rows[-1]['efficiency']:.2f} |", flush=True)
        result["work"][work] = rows
        print()
    save("scale_out", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
