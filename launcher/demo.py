"""`python -m launcher demo`: start the service, embed a text through its API, search in it by meaning, stop."""

import secrets
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import httpx
import numpy as np
from tqdm import tqdm

from core.config import Settings
from core.errors import VectorApiError
from core.keys import append, digest_of
from examples.client import Client, Job, read_passages
from launcher.interrupts import Interrupts
from launcher.stack import Show, Stack, free_port

WIDTH = 79
API_SECONDS = 60
MODEL_SECONDS = 1800
"""How long the worker may take: at first it downloads the model."""
NEAREST = 3
SHOWN_NUMBERS = 6
SHOWN_LOG_LINES = 15

QUESTIONS = (
    "a cat that disappears until only its smile is left",
    "an insect that smokes",
    "Why does the clock at the party always show six?",
)
"""They share few words with the passages that answer them."""

NEXT_STEPS = """\
Next: keep it running, and in another terminal send it texts of your own.

  make run

  curl 'http://127.0.0.1:8000/v1/jobs?wait=10' \\
       -H 'Content-Type: application/json' \\
       -d '{"inputs": ["Hello, world"]}'
"""

Vectors = np.ndarray[Any, np.dtype[np.float32]]


def demo(settings: Settings, environ: Mapping[str, str], file: Path, *, queues: str) -> int:
    """Run the demo; returns the exit code. The services' log stays when something fails, and nothing else.

    Raises:
        VectorApiError: the text cannot be read.
    """
    try:
        passages = read_passages(file)
    except (OSError, UnicodeDecodeError) as error:
        raise VectorApiError(f"{file} cannot be read as a text in UTF-8: {error}") from None
    if not passages:
        raise VectorApiError(f"{file} holds no text")
    port = free_port(settings.api_host)
    interrupts = Interrupts()
    interrupts.install()
    folder = Path(tempfile.mkdtemp(prefix="vector-api-demo-"))
    log = folder / "demo.log"
    print(f"vector-api: embed {file.name}, {len(passages)} passages, and search in it by meaning\n")
    try:
        with log.open("w", encoding="utf-8") as out:
            show = _writer(out)
            key, keys = _make_key(folder)
            environ = dict(environ) | {"API_KEYS_FILE": str(keys), "LOG_FORMAT": "text"}
            with Stack(settings, environ, folder / "data", port=port, queues=queues, show=show, interrupts=interrupts) as stack:
                _demonstrate(stack, settings, passages, queues.split(",")[0], key)
                stack.check()
    except (VectorApiError, httpx.HTTPError, RuntimeError) as error:
        shutil.rmtree(folder / "data", ignore_errors=True)
        _explain(error, log)
        return 1
    except KeyboardInterrupt:
        print("\nstopped")
        shutil.rmtree(folder, ignore_errors=True)
        return 130
    shutil.rmtree(folder)
    print(NEXT_STEPS, end="")
    return 0


def _make_key(folder: Path) -> tuple[str, Path]:
    """A key for this demo alone, so that it works at any API_HOST, and the file that the API knows it from."""
    key, keys = secrets.token_urlsafe(), folder / "keys"
    append(keys, f"demo:{digest_of(key)}")
    return key, keys


def _demonstrate(stack: Stack, settings: Settings, passages: list[str], queue: str, key: str) -> None:
    with _stage("starting Redis and the API") as tick:
        stack.wait_for_api(API_SECONDS, tick)
    with _stage(f"loading the model {settings.model_name}") as tick:
        stack.wait_for_worker(MODEL_SECONDS, tick)
    client = Client(stack.url, api_key=key)
    try:
        job, vectors = _embed(client, passages, queue)
        _show_job(job)
        _show_vectors(vectors)
        _search(client, passages, vectors, queue)
    finally:
        client.close()


def _embed(client: Client, passages: list[str], queue: str) -> tuple[Job, Vectors]:
    """Submit the passages as one job, show its progress, and read its vectors."""
    job = client.submit(passages, queue=queue)
    with _progress(len(passages)) as show:
        job = client.wait(job, every_seconds=0.2, show=show)
    if job["status"] != "succeeded" or job["counts"]["failed"]:
        raise RuntimeError(f"the job {job['status']}, {job['counts']['failed']} of its inputs failed: {job['errors'][:1]}")
    return job, client.vectors(job)


def _show_job(job: Job) -> None:
    seconds = job["ended_at"] - job["started_at"]
    rows = {
        "id": job["id"],
        "status": job["status"],
        "counts": ", ".join(f"{count} {name}" for name, count in job["counts"].items()),
        "queue": job["queue"],
        "model": job["model"],
        "revision": job["revision"],
        "engine": f"{job['engine']} on {job['device']} in {job['dtype']}",
        "tokens": f"{job['tokens']}, {job['truncated']} passages truncated",
        "time": f"{seconds:.1f} s, {job['counts']['done'] / max(seconds, 0.001):.0f} passages a second",
    }
    print("\nThe job, as GET /v1/jobs/{id} shows it")
    for name, value in rows.items():
        print(f"  {name:8}  {value}")


def _show_vectors(vectors: Vectors) -> None:
    numbers = " ".join(f"{number:+.4f}" for number in vectors[0, :SHOWN_NUMBERS])
    print(f"\nIts vectors: {vectors.dtype}, {vectors.shape[0]} × {vectors.shape[1]}")
    print(f"  the first one  [{numbers} …]")


def _search(client: Client, passages: list[str], vectors: Vectors, queue: str) -> None:
    """Embed the questions and show the passages whose vectors are nearest."""
    started = time.monotonic()
    job = client.submit(QUESTIONS, wait_seconds=30, queue=queue, priority="interactive")
    found: Vectors = np.array([item["embedding"] for item in job["data"]], dtype=np.float32)
    milliseconds = 1000 * (time.monotonic() - started)
    print(f"\nWhat is near in meaning? {len(QUESTIONS)} questions, embedded in {milliseconds:.0f} ms; cosine, passage")
    for question, cosines in zip(QUESTIONS, found @ vectors.T, strict=True):  # vectors have unit length
        print(f"\n  {question}")
        for index in np.argsort(-cosines)[:NEAREST]:
            first, *rest = textwrap.wrap(passages[index], WIDTH - 10, max_lines=2, placeholder=" …")
            print("\n          ".join([f"    {cosines[index]:.2f}  {first}", *rest]))
    print()


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Job], None]]:
    """A progress bar on a terminal; in a log, a line now and then."""
    if sys.stdout.isatty():
        with tqdm(total=total, desc="  embedding", unit=" passages", file=sys.stdout, ncols=WIDTH, nrows=20) as bar:
            yield lambda job: bar.update(job["counts"]["done"] - bar.n)
        return
    shown = 0

    def show(job: Job) -> None:
        nonlocal shown
        if job["counts"]["done"] != shown:
            shown = job["counts"]["done"]
            print(f"  embedding: {shown} of {total} passages", flush=True)

    yield show


@contextmanager
def _stage(what: str) -> Iterator[Callable[[], None]]:
    """One line for something that takes a while, with its time; on a terminal, each call of what this yields counts on."""
    started = time.monotonic()
    live = sys.stdout.isatty()

    def show(end: str = "") -> None:
        if live:
            print(f"\r  {what} … {time.monotonic() - started:.1f} s", end=end, flush=True)

    print(f"  {what} …", end="", flush=True)
    try:
        yield show
    except BaseException:
        print(flush=True)
        raise
    if live:
        show(end="\n")
    else:
        print(f" {time.monotonic() - started:.1f} s", flush=True)


def _writer(out: TextIO) -> Show:
    return lambda name, line: print(f"{name:6} | {line}", file=out, flush=True)


def _explain(error: Exception, log: Path) -> None:
    message = error.message if isinstance(error, VectorApiError) else f"{error or type(error).__name__}"
    print(f"\nThe demo failed: {message}", file=sys.stderr)
    lines = log.read_text(encoding="utf-8").splitlines()
    if not lines:
        shutil.rmtree(log.parent)
    else:
        print(f"\nThe end of the services' log, {log}:", file=sys.stderr)
        for line in lines[-SHOWN_LOG_LINES:]:
            print(f"  {line}", file=sys.stderr)
