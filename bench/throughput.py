"""Texts per second: our service end to end, our engine in process, and sentence-transformers' `encode` at its best batch size.

    python -m bench.throughput [--size 1600] [--rounds 5]

The three take turns within every round, so that a machine whose speed drifts drifts for all of them, and so does the machine's
own limit, the rate of a matrix product; ratios and shares are medians over the rounds. Each rival is a process of its own. End
to end means: NDJSON in over HTTP, ledger, Celery worker, npy out. The best batch size of `encode` is found in the warm-up, for
each corpus.

A share is that of useful work: the operations of the model's matrix products over tokens that are no padding, a second, in the
operations of the matrix product, a second.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import httpx

from bench.operations import Shape
from bench.rivals import Rival, embed, encode, engine_facts, machine_rate, model_shape, token_counts
from bench.sampling import Sampler, roles
from bench.setting import corpora, effective, end_to_end, heading, machine, median, save, service, worst_cosine

ENCODE_BATCHES = (8, 32, 64)
PAIRS = (("engine", "encode"), ("service", "encode"), ("service", "engine"))
ENVIRON = {"DEVICE": "cpu"}
MATRIX_SECONDS = 0.3


def best_batch(plain: Rival, texts: Sequence[str]) -> tuple[int, Any]:
    """The batch size at which `encode` is fastest on a third of the texts, and the vectors of all."""
    plain.call(encode, texts[:8], 8)
    some = texts[:: max(1, min(3, len(texts) // 32))]
    size = min(ENCODE_BATCHES, key=lambda size: plain.call(encode, some, size)[0])
    return size, plain.call(encode, texts, size)[1]


def compare(
    plain: Rival, engine: Rival, client: httpx.Client, texts: Sequence[str], options: argparse.Namespace, shape: Shape | None
) -> dict[str, Any]:
    """The result for one corpus."""
    batch_size, wanted = best_batch(plain, texts)
    cosine = worst_cosine(end_to_end(client, texts)[1], wanted)
    engine.call(embed, texts, options.budget)
    counts = engine.call(token_counts, texts)
    rounds = [
        {
            "encode": plain.call(encode, texts, batch_size)[0],
            "engine": engine.call(embed, texts, options.budget),
            "service": end_to_end(client, texts)[0],
            "matrix_gflops": plain.call(machine_rate, MATRIX_SECONDS),
        }
        for _ in range(options.rounds)
    ]
    rivals = ("encode", "engine", "service")
    found = {
        "texts": len(texts),
        "tokens_per_text": round(sum(counts) / len(texts), 1),
        "encode_batch_size": batch_size,
        "texts_per_second": {who: round(len(texts) / median([r[who] for r in rounds]), 1) for who in rivals},
        "ratios": {f"{who}/{whom}": round(median([r[whom] / r[who] for r in rounds]), 3) for who, whom in PAIRS},
        "worst_cosine": cosine,
    }
    if shape:
        gflop = sum(map(shape.operations, counts)) / 1e9
        found |= {
            "gflop_per_text": round(gflop / len(texts), 3),
            "share_of_matrix_rate": {
                who: round(median([gflop / r[who] / r["matrix_gflops"] for r in rounds]), 3) for who in rivals
            },
        }
    return found | {"rounds": rounds}


def show(name: str, found: dict[str, Any]) -> None:
    rates = " ".join(f"{rate:8.1f}" for rate in found["texts_per_second"].values())
    ratios = " ".join(f"{ratio:{len(pair)}.2f}" for pair, ratio in found["ratios"].items())
    shares = " ".join(f"{share:6.0%}" for share in found.get("share_of_matrix_rate", {}).values())
    head = f"{name:10} {found['texts']:6} {found['tokens_per_text']:6.0f} {found['encode_batch_size']:5}"
    print(f"{head} {rates}   {ratios}   {found['worst_cosine']:.7f}   {shares}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1600, help="short texts in a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each rival (%(default)s)")
    parser.add_argument("--budget", type=int, default=2048, help="token budget of the engine in process (%(default)s)")
    options = parser.parse_args()
    if options.size < 1 or options.rounds < 1:
        parser.error("--size and --rounds must be at least 1")
    facts = machine()
    heading("Texts per second", facts)
    results: dict[str, Any] = {
        "machine": facts,
        "settings": effective(ENVIRON),
        "options": vars(options) | {"encode_batches": ENCODE_BATCHES},
        "corpora": {},
    }
    with (
        Rival() as plain,
        Rival() as engine,
        service(**ENVIRON) as stack,
        httpx.Client(base_url=stack.url, timeout=600) as client,
    ):
        shape = plain.call(model_shape)
        results["engine"], results["dtype"] = engine.call(engine_facts)
        print(f"engine {results['engine']} in {results['dtype']}, BATCH_SECONDS {results['settings']['batch_seconds']}")
        if shape:
            results["model"] = {
                "layers": shape.layers,
                "hidden": shape.hidden,
                "intermediate": shape.intermediate,
                "linear_parameters": shape.parameters,
            }
            print(
                f"{shape.layers} layers of {shape.hidden} and {shape.intermediate}: {shape.parameters / 1e6:.1f} million weights "
                f"in linear layers; {shape.operations(200) / 1e9:.2f} GFLOP for a text of 200 tokens"
            )
        heads = f"{'corpus':10} {'texts':>6} {'tokens':>6} {'batch':>5} {'encode':>8} {'engine':>8} {'service':>8}"
        pairs = " ".join(f"{who}/{whom}" for who, whom in PAIRS)
        print(f"\n{heads}   {pairs}   {'cosine':9}   shares of the matrix rate")
        processes = {"encode": plain.process, "engine": engine.process} | roles(stack)
        with Sampler(processes) as memory:
            for name, texts in corpora(options.size).items():
                results["corpora"][name] = compare(plain, engine, client, texts, options, shape)
                show(name, results["corpora"][name])
        results["peak_resident_bytes"] = memory.peaks()
    limits = [r["matrix_gflops"] for found in results["corpora"].values() for r in found["rounds"]]
    facts["matrix_gflops"] = round(max(limits), 1)
    print(f"\nmatrix product, float32: {min(limits):.0f} to {max(limits):.0f} GFLOP/s")
    print("peaks of memory: " + ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in memory.peaks().items()))
    save("throughput", results)


if __name__ == "__main__":
    main()
