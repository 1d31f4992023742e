"""What it costs to be seen: an earlier version of the service beside this one, while this one is looked at.

    git worktree add /tmp/before COMMIT
    python -m bench.overhead --before /tmp/before [--rounds 8] [--texts 2000] [--now watched|alone|traced]

Both run at the same time, as `make run` runs them, and get the same job in turns, so whatever else the machine does meets both.
While this version computes, `/metrics` is read every 5 s, and `/v1/queues` and `/v1/jobs` every 2 s, as a Prometheus and an
open dashboard do, on the same CPUs. The clock shows what users wait; the CPU seconds of all processes of a service (Redis, API,
worker) are less noisy.

With `--now alone` nobody reads anything: what is left is the cost of keeping the figures. With `--now traced` this version sends
its spans, all of them, to a receiver that drops them; with a checkout of the same commit that is what tracing costs. The
receiver's own CPU seconds do not count.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import psutil

from bench.setting import ROOT, corpora, end_to_end, heading, machine, median, save
from launcher.stack import free_port

START_SECONDS = 300
SAVED = {"watched": "overhead", "alone": "overhead_alone", "traced": "overhead_traced"}
"""Under which name the result of each is saved."""
WATCHED = {"/metrics": 5.0, "/v1/queues": 2.0, "/v1/jobs?limit=25": 2.0}
"""What is read of the version of today, and every how many seconds."""


class Running:
    """A service from a checkout, started by its own launcher."""

    def __init__(self, checkout: Path, folder: str, **environ: str) -> None:
        port = free_port("127.0.0.1")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        environ = inherited | {"API_PORT": str(port), "DATA_DIR": folder, "DEVICE": "cpu"} | environ
        self._process = subprocess.Popen(
            [sys.executable, "-m", "launcher", "run"],
            cwd=checkout,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600)

    def wait(self) -> None:
        """Returns when a worker has its model."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self._process.poll() is None, "the service has ended"
            try:
                if self.client.get("/readyz").json()["queues"]["cpu"]:
                    return
            except (httpx.TransportError, KeyError):
                pass
            time.sleep(0.2)
        raise SystemExit(f"the service was not ready within {START_SECONDS} s")

    def cpu_seconds(self) -> float:
        """Of all its processes so far."""
        spent = 0.0
        for process in psutil.Process(self._process.pid).children(recursive=True):
            times = process.cpu_times()
            spent += times.user + times.system
        return spent

    def stop(self) -> None:
        self.client.close()
        self._process.terminate()
        self._process.wait(60)


@contextmanager
def watched(client: httpx.Client) -> Iterator[None]:
    """Somebody looks at the service meanwhile."""
    over = threading.Event()

    def look(path: str, every_seconds: float) -> None:
        with httpx.Client(base_url=client.base_url, timeout=60) as own:
            while not over.wait(every_seconds):
                own.get(path).raise_for_status()

    threads = [threading.Thread(target=look, args=item) for item in WATCHED.items()]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


class Dropping(BaseHTTPRequestHandler):
    """Takes what comes, as a receiver of traces does, and drops it."""

    protocol_version = "HTTP/1.1"
    taken_bytes = 0

    def do_POST(self) -> None:
        Dropping.taken_bytes += len(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_args: Any) -> None:
        pass


def _receive(pipe: Connection) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Dropping) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        pipe.send(server.server_port)
        pipe.recv()
        pipe.send(Dropping.taken_bytes)
        server.shutdown()


class Receiver:
    """Takes traces, in a process of its own, at `url`."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, other = spawn.Pipe()
        self._process = spawn.Process(target=_receive, args=(other,), daemon=True)
        self._process.start()
        self.url = f"http://127.0.0.1:{self._pipe.recv()}"

    def stop(self) -> int:
        """Bytes that came."""
        self._pipe.send("stop")
        taken: int = self._pipe.recv()
        self._process.join(10)
        return taken


def measure(service: Running, texts: Sequence[str]) -> dict[str, float]:
    """Seconds of one job, and of all CPUs meanwhile."""
    before = service.cpu_seconds()
    seconds, vectors = end_to_end(service.client, texts)
    assert len(vectors) == len(texts)
    return {"seconds": seconds, "cpu_seconds": service.cpu_seconds() - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="a checkout of the version to compare with")
    parser.add_argument("--rounds", type=int, default=8, help="jobs of each version, in turns (%(default)s)")
    parser.add_argument("--texts", type=int, default=2000, help="short texts in a job (%(default)s)")
    parser.add_argument("--now", choices=SAVED, default="watched", help="what happens to this version (%(default)s)")
    options = parser.parse_args()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=options.before, capture_output=True, text=True, check=True
    )
    facts = machine()
    before = commit.stdout.strip()
    heading(f"{options.now.capitalize()}, beside {before}, which nobody watches", facts)
    texts = corpora(options.texts)["short"]
    rounds: list[dict[str, dict[str, float]]] = []
    receiver = Receiver() if options.now == "traced" else None
    traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url} if receiver else {}
    with tempfile.TemporaryDirectory() as folder:
        services = {"before": Running(options.before, f"{folder}/before"), "now": Running(ROOT, f"{folder}/now", **traced)}
        try:
            for service in services.values():
                service.wait()
                end_to_end(service.client, texts)
            for n in range(options.rounds):
                found = {}
                for name in sorted(services, reverse=n % 2 == 1):
                    if name == "now":
                        with watched(services[name].client) if options.now == "watched" else nullcontext():
                            found[name] = measure(services[name], texts)
                    else:
                        found[name] = measure(services[name], texts)
                rounds.append(found)
                print(
                    ", ".join(f"{name} {row['seconds']:.2f} s, CPU {row['cpu_seconds']:.2f} s" for name, row in found.items()),
                    flush=True,
                )
        finally:
            for service in services.values():
                service.stop()
    results: dict[str, Any] = {"machine": facts, "before": before, "texts": options.texts, "rounds": rounds}
    if receiver:
        results["traced_bytes"] = receiver.stop()
        assert results["traced_bytes"], "no span came"
    for name in ("seconds", "cpu_seconds"):
        ratios = [row["now"][name] / row["before"][name] for row in rounds]
        results[f"{name}_ratio"] = median(ratios)
        print(f"{name}: now/before {median(ratios):.3f} (median of {len(ratios)}; {min(ratios):.3f} to {max(ratios):.3f})")
    save(SAVED[options.now], results)


if __name__ == "__main__":
    main()
