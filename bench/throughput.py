"""Texts per second: our service end to end, our engine in process, and sentence-transformers' `encode` at its best batch size.

    python -m bench.throughput [--size 300] [--rounds 5]

The three take turns within every round, so that a machine whose speed drifts drifts for all of them; the ratios are medians over
the rounds. End to end means: JSON or NDJSON in over HTTP, ledger, Celery worker, npy out.
"""

import argparse
import io
import json
import time
from typing import Any

import httpx
import numpy as np
import psutil

from bench.setting import corpora, heading, machine, matrix_rate, median, save, service
from core.batching import batches
from core.config import Settings

ENCODE_BATCHES = (8, 32, 64)


def encode_rates(model: Any, texts: list[str]) -> dict[int, float]:
    """Seconds of `encode` per batch size."""
    found = {}
    for size in ENCODE_BATCHES:
        started = time.perf_counter()
        model.encode(texts, batch_size=size, normalize_embeddings=True)
        found[size] = time.perf_counter() - started
    return found


def in_process(engine: Any, texts: list[str], budget_tokens: int) -> float:
    """Seconds of our engine for the texts, tokenising included."""
    started = time.perf_counter()
    tokens = engine.tokenize(texts, None)
    for batch in batches([len(item.ids) for item in tokens], budget_tokens):
        engine.embed([tokens[index] for index in batch])
    return time.perf_counter() - started


def end_to_end(client: httpx.Client, texts: list[str]) -> tuple[float, np.ndarray]:
    """Seconds from the POST to the last byte of the vectors, and the vectors."""
    body = "\n".join(json.dumps(text) for text in texts).encode()
    started = time.perf_counter()
    answer = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/x-ndjson"})
    job = answer.raise_for_status().json()
    while job["status"] not in ("succeeded", "failed"):
        job = client.get(f"/v1/jobs/{job['id']}", params={"wait": 30}).raise_for_status().json()
    content = client.get(f"/v1/jobs/{job['id']}/result", params={"format": "npy"}).raise_for_status().content
    return time.perf_counter() - started, np.load(io.BytesIO(content))


def worst_cosine(found: np.ndarray, wanted: np.ndarray) -> float:
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    return float(((found.astype(np.float64) * wanted).sum(axis=1) / norms).min())


def resident(process: psutil.Process) -> dict[int, int]:
    """Bytes in RAM of a process and those below it."""
    return {p.pid: p.memory_info().rss for p in [process, *process.children(recursive=True)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=300, help="short texts in a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=2048, help="token budget of the engine in process (%(default)s)")
    options = parser.parse_args()
    facts = machine()
    heading("Texts per second", facts)

    from worker.engines.loading import load_engine
    from worker.engines.model import Model

    settings = Settings.from_env({"DEVICE": "cpu"})
    engine = load_engine(settings)
    import torch

    model = Model.load(settings, "cpu", torch.float32).module
    facts["matrix_gflops"] = round(matrix_rate(), 1)
    print(f"engine {engine.facts.engine} in {engine.facts.dtype}; the machine multiplies {facts['matrix_gflops']} GFLOP/s\n")
    results: dict[str, Any] = {"machine": facts, "engine": engine.facts.engine, "dtype": engine.facts.dtype, "corpora": {}}
    with service(DEVICE="cpu") as stack, httpx.Client(base_url=stack.url, timeout=120) as client:
        workers = {entry.name: psutil.Process(entry.process.pid) for entry in stack.services}
        pairs = "engine/encode service/encode service/engine"
        print(f"{'corpus':10} {'tokens':>6} {'encode':>8} {'engine':>8} {'service':>8}   {pairs}  cosine")
        for name, texts in corpora(options.size).items():
            wanted = model.encode(texts, normalize_embeddings=True)
            found = end_to_end(client, texts)[1]  # warms both
            rounds = []
            for _ in range(options.rounds):
                encode = encode_rates(model, texts)
                rounds.append(
                    {
                        "encode": min(encode.values()),
                        "engine": in_process(engine, texts, options.budget),
                        "service": end_to_end(client, texts)[0],
                    }
                )
            rates = {who: len(texts) / median([r[who] for r in rounds]) for who in rounds[0]}
            ratios = {
                "engine/encode": median([r["encode"] / r["engine"] for r in rounds]),
                "service/encode": median([r["encode"] / r["service"] for r in rounds]),
                "service/engine": median([r["engine"] / r["service"] for r in rounds]),
            }
            tokens = sum(len(item.ids) for item in engine.tokenize(texts, None)) / len(texts)
            cosine = worst_cosine(found, wanted)
            results["corpora"][name] = {
                "texts": len(texts),
                "tokens_per_text": round(tokens, 1),
                "texts_per_second": {who: round(rate, 1) for who, rate in rates.items()},
                "ratios": {pair: round(ratio, 2) for pair, ratio in ratios.items()},
                "worst_cosine": cosine,
                "seconds": rounds,
            }
            shown = " ".join(f"{rate:8.1f}" for rate in rates.values())
            shown += "   " + " ".join(f"{ratio:{len(pair)}.2f}" for pair, ratio in ratios.items())
            print(f"{name:10} {tokens:6.0f} {shown}  {cosine:.7f}", flush=True)
        memory = {name: max(resident(process).values()) for name, process in workers.items()}
        results["resident_bytes"] = memory
        print("\nresident memory: " + ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in memory.items()))
    print(f"written to {save('throughput', results)}")


if __name__ == "__main__":
    main()
