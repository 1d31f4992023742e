"""A batch through OpenAI's own client beside the same texts as a native job: `python -m bench.batches`.

The service runs as users run it, with the default model. The same short texts go through it as one NDJSON job (sent, awaited,
vectors read as npy) and as a batch of one text a line (file made and sent, batch awaited, output read and every line parsed), in
turns, several times. A last batch has its worker's child killed twice. In each output every `custom_id` must be there exactly
once, with the vector of its text.
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

import httpx
import numpy as np
import openai
import psutil

from bench.sampling import Sampler, roles
from bench.setting import corpora, effective, end_to_end, heading, machine, median, save, service, worst_cosine
from core.config import DEFAULT_MODEL
from launcher.stack import Stack

MOST_RATIO = 1.2
LEAST_COSINE = 0.999
KILLED_AT = (0.3, 0.6)
"""Shares of the lines after which the worker's child is killed."""

PARTS = ("send", "create", "embed", "download")
"""Of a batch's time, beside what its client needs to parse the output."""

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
    vectors, parse = read_output(client, batch.output_file_id or "", len(texts))
    times.append(time.perf_counter())
    parts = {name: end - start for name, start, end in zip(PARTS, times, times[1:], strict=False)}
    return parts | {"download": parts["download"] - parse, "parse": parse}, vectors


def read_output(client: openai.OpenAI, file_id: str, lines: int) -> tuple[np.ndarray, float]:
    """The vectors in the order of the lines, and the seconds in which this process made them of the text.

    Fails unless every custom_id is there exactly once.
    """
    found: dict[int, np.ndarray] = {}
    parse = 0.0
    with client.files.with_streaming_response.content(file_id) as content:
        for line in content.iter_lines():
            started = time.perf_counter()
            item = json.loads(line)
            number = int(item["custom_id"].removeprefix("line-"))
            assert number not in found, f"custom_id line-{number} is there twice"
            embedding = item["response"]["body"]["data"][0]["embedding"]
            as_bytes = isinstance(embedding, str)
            found[number] = np.frombuffer(base64.b64decode(embedding), "<f4") if as_bytes else np.array(embedding, np.float32)
            parse += time.perf_counter() - started
    assert sorted(found) == list(range(lines)), f"{lines - len(found)} custom_ids are missing"
    return np.stack([found[number] for number in range(lines)]), parse


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
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured, in turns (%(default)s)")
    options = parser.parse_args()
    facts = machine()
    heading(f"A batch of {options.lines:,} lines beside a native job", facts)
    texts = corpora(options.lines)["short"]
    with (
        service(**ENVIRON) as stack,
        httpx.Client(base_url=stack.url, timeout=600) as plain,
        openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none") as client,
    ):
        end_to_end(plain, texts[:500])
        api = {"api": roles(stack)["api"]}
        before = Sampler(api).sample()["api"]
        natives, batches, peaks, cosines = [], [], [], []
        for _ in range(options.rounds):
            native, wanted = end_to_end(plain, texts)
            natives.append(native)
            with Sampler(api) as memory:
                parts, vectors = run_batch(client, texts, options.encoding)
            batches.append(parts)
            peaks.append(memory.peaks()["api"])
            cosines.append(worst_cosine(vectors, wanted))
            batch = f"batch {sum(parts.values()):.1f} s ({shown(parts)})"
            print(f"native job {native:.1f} s; {batch}; API {peaks[-1] / 1e6:.1f} MB at most", flush=True)
        killer = Killer(stack, options.lines)
        _, after_kills = run_batch(client, texts, options.encoding, killer)
    cosines.append(worst_cosine(after_kills, wanted))
    ratio = median([sum(parts.values()) for parts in batches]) / median(natives)
    unparsed = median([sum(parts.values()) - parts["parse"] for parts in batches]) / median(natives)
    print(f"ratio of the medians {ratio:.2f}, {'within' if ratio <= MOST_RATIO else 'ABOVE'} {MOST_RATIO}")
    print(f"without what the client takes to parse the output: {unparsed:.2f}")
    print(f"API: {before / 1e6:.1f} MB before, {max(peaks) / 1e6:.1f} MB at most")
    print(f"every custom_id exactly once, each time; the last time the worker's child was killed {killer.kills} times")
    print(f"worst cosine between batch and native job: {min(cosines):.6f}")
    assert min(cosines) > LEAST_COSINE
    results = {
        "machine": facts,
        "settings": effective(ENVIRON),
        "lines": options.lines,
        "encoding": options.encoding,
        "native_seconds": median(natives),
        "batch_seconds": {name: median([parts[name] for parts in batches]) for name in batches[0]},
        "ratio": ratio,
        "ratio_without_parsing": unparsed,
        "rounds": [{"native_seconds": native, "batch_seconds": parts} for native, parts in zip(natives, batches, strict=True)],
        "api_bytes": {"before": before, "peaks": peaks},
        "kills": killer.kills,
        "worst_cosine": min(cosines),
    }
    save("batches", results)


def shown(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {spent:.1f} s" for name, spent in parts.items())


if __name__ == "__main__":
    main()
