"""A batch through OpenAI's own client beside the same texts as a native job: `python -m bench.batches`.

The service runs as users run it, with the default model. The same short texts go through it as one NDJSON job (sent, awaited,
vectors read as npy) and as a batch of one text a line (file made and sent, batch awaited, output read and every line parsed). A
last batch has its worker's child killed twice. In each output every `custom_id` must be there exactly once, with the vector of
its text.
"""

import argparse
import base64
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import psutil

from bench.sampling import Sampler, roles
from bench.setting import corpora, effective, end_to_end, heading, machine, save, service, worst_cosine
from core.config import DEFAULT_MODEL
from launcher.stack import Stack

MOST_RATIO = 1.2
LEAST_COSINE = 0.999
KILLED_AT = (0.3, 0.6)
"""Shares of the lines after which the worker's child is killed."""

ENVIRON = {"MAX_BATCH_INPUTS": "1000000"}


def write_lines(path: Path, texts: Sequence[str], encoding: str) -> None:
    with path.open("w") as file:
        for n, text in enumerate(texts):
            body = {"model": DEFAULT_MODEL, "input": text, "encoding_format": encoding}
            file.write(json.dumps({"custom_id": f"line-{n}", "method": "POST", "url": "/v1/embeddings", "body": body}) + "\n")


def run_batch(
    client: openai.OpenAI, texts: Sequence[str], encoding: str, note: Callable[[int], None] = lambda done: None
) -> tuple[dict[str, float], np.ndarray]:
    """Seconds by part, and the vectors, float32, (len(texts), dimensions). `note` hears of the lines that are done."""
    times = [time.perf_counter()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.jsonl"
        write_lines(path, texts, encoding)
        file = client.files.create(file=path, purpose="batch")
    times.append(time.perf_counter())
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
    times.append(time.perf_counter())
    while batch.status == "in_progress":
        assert batch.request_counts is not None
        note(batch.request_counts.completed)
        time.sleep(0.5)
        batch = client.batches.retrieve(batch.id)
    times.append(time.perf_counter())
    assert batch.status == "completed", batch
    assert batch.error_file_id is None, batch
    vectors = read_output(client, batch.output_file_id or "", len(texts))
    times.append(time.perf_counter())
    parts = ("send", "create", "embed", "read")
    return {name: end - start for name, start, end in zip(parts, times, times[1:], strict=False)}, vectors


def read_output(client: openai.OpenAI, file_id: str, lines: int) -> np.ndarray:
    """The vectors in the order of the lines; fails unless every custom_id is there exactly once."""
    found: dict[int, np.ndarray] = {}
    with client.files.with_streaming_response.content(file_id) as content:
        for line in content.iter_lines():
            item = json.loads(line)
            number = int(item["custom_id"].removeprefix("line-"))
            assert number not in found, f"custom_id line-{number} is there twice"
            embedding = item["response"]["body"]["data"][0]["embedding"]
            as_bytes = isinstance(embedding, str)
            found[number] = np.frombuffer(base64.b64decode(embedding), "<f4") if as_bytes else np.array(embedding, np.float32)
    assert sorted(found) == list(range(lines)), f"{lines - len(found)} custom_ids are missing"
    return np.stack([found[number] for number in range(lines)])


class Killer:
    """Kills the worker's child when so many lines are done."""

    def __init__(self, stack: Stack, lines: int) -> None:
        (self._worker,) = [psutil.Process(found.process.pid) for found in stack.services if found.name == "worker"]
        self._at = [share * lines for share in KILLED_AT]
        self.kills = 0

    def __call__(self, done: int) -> None:
        if self.kills < len(self._at) and done >= self._at[self.kills]:
            for child in self._worker.children():
                os.kill(child.pid, signal.SIGKILL)
            self.kills += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=50_000, help="lines of the batch (%(default)s)")
    parser.add_argument("--encoding", choices=("float", "base64"), default="float", help="form of its vectors (%(default)s)")
    options = parser.parse_args()
    facts = machine()
    heading(f"A batch of {options.lines:,} lines beside a native job", facts)
    texts = corpora(options.lines)["short"]
    results: dict[str, Any] = {
        "machine": facts,
        "settings": effective(ENVIRON),
        "lines": options.lines,
        "encoding": options.encoding,
    }
    with (
        service(**ENVIRON) as stack,
        httpx.Client(base_url=stack.url, timeout=600) as plain,
        openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none") as client,
    ):
        end_to_end(plain, texts[:500])
        native, wanted = end_to_end(plain, texts)
        api = {"api": roles(stack)["api"]}
        with Sampler(api) as memory:
            parts, vectors = run_batch(client, texts, options.encoding)
        killer = Killer(stack, options.lines)
        _, after_kills = run_batch(client, texts, options.encoding, killer)
    seconds, before, peak = sum(parts.values()), memory.samples[0][1]["api"], memory.peaks()["api"]
    worst = min(worst_cosine(vectors, wanted), worst_cosine(after_kills, wanted))
    results |= {
        "native_seconds": native,
        "batch_seconds": parts,
        "ratio": seconds / native,
        "api_bytes": {"before": before, "peak": peak},
        "kills": killer.kills,
        "worst_cosine": worst,
    }
    shown = ", ".join(f"{name} {spent:.1f} s" for name, spent in parts.items())
    print(f"native job {native:.1f} s; batch {seconds:.1f} s ({shown})")
    print(f"ratio {seconds / native:.2f}, {'within' if seconds <= MOST_RATIO * native else 'ABOVE'} {MOST_RATIO}")
    print(f"API: {before / 1e6:.1f} MB before, {peak / 1e6:.1f} MB at most")
    print(f"every custom_id exactly once, twice; the second time the worker's child was killed {killer.kills} times")
    print(f"worst cosine between batch and native job: {worst:.6f}")
    assert worst > LEAST_COSINE
    save("batches", results)


if __name__ == "__main__":
    main()
