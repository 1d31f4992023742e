"""Real Celery workers with the fake engine, killed for real."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from core.config import Settings
from core.jobs import Job, JobOptions, JobStatus, Lane
from core.ledger import Ledger, NewJob
from core.sharding import Input, cut
from tests.processes import ROOT, Stack, wait_for

pytestmark = pytest.mark.integration

MODEL = Settings().model_name
"""Of workers whose settings name no other."""


def submit(
    ledger: Ledger,
    texts: list[str],
    job_id: str = "job",
    *,
    lane: Lane = Lane.BULK,
    queue: str = "cpu",
    model: str = MODEL,
    **options: object,
) -> str:
    """Accept a job without the API; no message is sent, the worker's own timer finds the work."""
    shards = list(cut((Input(text) for text in texts), max_inputs=16, max_characters=10_000))
    ledger.stage(job_id, shards)
    job = NewJob(job_id, "default", queue, lane, model, JobOptions(**options), {}, 600, len(texts), len(shards))  # type: ignore[arg-type]
    ledger.submit(job, max_waiting_inputs=10**9)
    return job_id


def ended(ledger: Ledger, job_id: str, seconds: float = 60) -> Job:
    def job_if_ended() -> Job | None:
        job = ledger.get(job_id, "default")
        return job if job.status.ended else None

    return wait_for(job_if_ended, seconds=seconds, what=f"the end of job {job_id}")  # type: ignore[return-value]


def assert_every_vector(ledger: Ledger, job_id: str, texts: list[str], *, but: frozenset[int] = frozenset()) -> None:
    import numpy as np

    from tests.fakes import DIMENSIONS, vector_of

    position = 0
    for span in ledger.finished(job_id):
        assert span.first == position, "a gap or an overlap between shards"
        block = ledger.result(job_id, span)
        vectors = np.frombuffer(block.vectors, dtype="<f4").reshape(span.count, DIMENSIONS)
        for n in range(span.count):
            if span.first + n in but:
                assert np.isnan(vectors[n]).all()
                assert block.errors[n].index == span.first + n
            else:
                assert np.allclose(vectors[n], vector_of(texts[span.first + n]), atol=1e-6)
        position = span.end
    assert position == len(texts)


def inspect(stack: Stack, *command: str) -> str:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "worker",
            "inspect",
            *command,
            "--timeout",
            "20",
            "-d",
            f"busy@{socket.gethostname()}",
        ],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "REDIS_URL": stack.redis_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


TEXTS = [f"text number {n} " + "word " * (n % 40) for n in range(300)]


def test_worker_embeds_every_input_in_order_without_being_told(stack: Stack, ledger: Ledger) -> None:
    stack.worker()
    job = ended(ledger, submit(ledger, TEXTS))
    assert (job.status, job.counts.done, job.counts.failed, job.device) == (JobStatus.SUCCEEDED, 300, 0, "cpu")
    assert job.tokens == sum(len(text.split()) + 2 for text in TEXTS)
    assert (job.engine, job.dtype, job.revision, job.parity) == ("fake", "float32", "fake", 0.99995)
    assert_every_vector(ledger, "job", TEXTS)


def test_child_killed_in_the_middle_loses_nothing(stack: Stack, ledger: Ledger) -> None:
    worker = stack.worker(FAKE_BATCH_SECONDS="0.1")
    submit(ledger, TEXTS)
    wait_for(lambda: ledger.finished("job"), what="the first shard")
    for child in worker.children():
        subprocess.run(["kill", "-9", str(child)], check=False)
    assert ledger.get("job", "default").status is JobStatus.RUNNING
    assert ended(ledger, "job").counts.done == 300
    assert_every_vector(ledger, "job", TEXTS)


def test_worker_killed_in_the_middle_loses_nothing(stack: Stack, ledger: Ledger) -> None:
    worker = stack.worker(FAKE_BATCH_SECONDS="0.1")
    submit(ledger, TEXTS)
    wait_for(lambda: ledger.finished("job"), what="the first shard")
    worker.kill_group()
    assert ledger.get("job", "default").status is JobStatus.RUNNING
    stack.worker()
    assert ended(ledger, "job").counts.done == 300
    assert_every_vector(ledger, "job", TEXTS)


def test_text_that_kills_its_worker_fails_alone(stack: Stack, ledger: Ledger) -> None:
    stack.worker()
    texts = [*TEXTS[:20], "KILL the process", *TEXTS[20:40]]
    job = ended(ledger, submit(ledger, texts), seconds=100)
    assert (job.status, job.counts.done, job.counts.failed) == (JobStatus.SUCCEEDED, 40, 1)
    assert [(error.index, error.code) for error in job.errors] == [(20, "worker_died")]
    assert "3 times" in job.errors[0].message
    assert_every_vector(ledger, "job", texts, but=frozenset({20}))


def test_text_that_raises_fails_alone(stack: Stack, ledger: Ledger) -> None:
    stack.worker()
    texts = [*TEXTS[:20], "RAISE an error", *TEXTS[20:40]]
    job = ended(ledger, submit(ledger, texts))
    assert (job.counts.done, job.counts.failed, job.errors[0].code) == (40, 1, "embedding_failed")
    assert_every_vector(ledger, "job", texts, but=frozenset({20}))


def test_out_of_memory_halves_the_batch_and_fails_nothing(stack: Stack, ledger: Ledger) -> None:
    stack.worker()
    texts = [*TEXTS, "OOM:2 in a batch of more than two"]
    job = ended(ledger, submit(ledger, texts))
    assert (job.counts.done, job.counts.failed) == (301, 0)
    assert_every_vector(ledger, "job", texts)


def test_job_of_failed_inputs_only_is_failed(stack: Stack, ledger: Ledger) -> None:
    stack.worker()
    job = ended(ledger, submit(ledger, ["a", "b"], prompt_name="poem"))
    assert (job.status, job.counts.failed, job.errors[0].code) == (JobStatus.FAILED, 2, "unknown_prompt")
    assert "query" in job.errors[0].message


def test_long_text_is_reported_or_fails_as_asked(stack: Stack, ledger: Ledger) -> None:
    stack.worker()
    texts = ["short", "word " * 400]
    cut_job = ended(ledger, submit(ledger, texts, "cut"))
    assert (cut_job.counts.done, cut_job.truncated) == (2, 1)
    assert ledger.result("cut", ledger.finished("cut")[0]).truncated == {1}
    refused = ended(ledger, submit(ledger, texts, "refused", truncate="error"))
    assert (refused.counts.done, refused.counts.failed, refused.truncated) == (1, 1, 0)
    assert (refused.errors[0].index, refused.errors[0].code) == (1, "text_too_long")


def test_interactive_job_overtakes_bulk_work(stack: Stack, ledger: Ledger) -> None:
    stack.worker(FAKE_BATCH_SECONDS="0.2", BATCH_SIZE="1")
    submit(ledger, TEXTS * 4, "bulk")
    wait_for(lambda: ledger.get("bulk", "default").status is JobStatus.RUNNING, what="bulk work")
    submit(ledger, ["one text"], "interactive", lane=Lane.INTERACTIVE)
    ended(ledger, "interactive")
    assert not ledger.get("bulk", "default").status.ended


def test_cancelled_job_stays_cancelled_and_frees_its_worker(stack: Stack, ledger: Ledger) -> None:
    stack.worker(FAKE_BATCH_SECONDS="0.2", BATCH_SIZE="1")
    submit(ledger, TEXTS * 10, "long")
    wait_for(lambda: ledger.get("long", "default").counts.done, what="the first shard")
    ledger.remove("long", "default")
    done = ledger.get("long", "default").counts.done
    ended(ledger, submit(ledger, ["next"], "next"))
    job = ledger.get("long", "default")
    assert (job.status, job.counts.done) == (JobStatus.CANCELLED, done)
    assert sum(span.count for span in ledger.finished("long")) == done


def test_terminated_worker_gives_its_shards_back_and_exits_cleanly(stack: Stack, ledger: Ledger) -> None:
    worker = stack.worker(FAKE_BATCH_SECONDS="0.2", BATCH_SIZE="1", LEASE_SECONDS="600")
    submit(ledger, TEXTS)
    wait_for(lambda: ledger.finished("job"), what="the first shard")
    assert worker.stop() == 0, worker.output()
    state = ledger.queue_states(["cpu"])[0]
    assert (state.running, state.suspects, state.workers) == (0, 0, ())
    assert state.waiting["bulk"] == 300 - ledger.get("job", "default").counts.done
    stack.worker()
    assert ended(ledger, "job").counts.done == 300


def test_two_workers_share_one_job(stack: Stack, ledger: Ledger) -> None:
    stack.worker(FAKE_BATCH_SECONDS="0.05", BATCH_SIZE="1")
    stack.worker(FAKE_BATCH_SECONDS="0.05", BATCH_SIZE="1")
    submit(ledger, TEXTS * 2)

    def both_hold_leases() -> bool:
        from tests.processes import redis_client

        return redis_client(stack.redis_url).zcard("vector-api:draining:cpu") == 2

    wait_for(both_hold_leases, what="both workers at work")
    assert ended(ledger, "job").counts.done == 600
    assert_every_vector(ledger, "job", TEXTS * 2)


def test_inspect_answers_while_a_batch_runs(stack: Stack, ledger: Ledger, tmp_path: Path) -> None:
    stack.worker(app="tests.faults.app", name="busy", HEARTBEAT_SECONDS="5", LEASE_SECONDS="60")
    held = tmp_path / "go"  # nobody makes it
    submit(ledger, [f"HOLD {held}"])
    wait_for(held.with_suffix(".held").exists, what="a running batch")
    wait_for(lambda: ledger.workers()[0].state == "busy", what="the report of it")
    assert "pong" in inspect(stack, "ping")
    assert "embed_pending" in inspect(stack, "active")
    assert "embed_pending" in inspect(stack, "registered")
    assert "prefork" in inspect(stack, "stats")
    found = {command: json.loads(inspect(stack, command, "--json")) for command in ("device", "model", "batches", "ledger")}
    for replies in found.values():
        (answer,) = replies.values()
        assert "error" not in answer
    (device,) = next(iter(found["device"].values())).values()
    assert (device["device"], device["dtype"], device["state"]) == ("cpu", "float32", "busy")
    (model,) = next(iter(found["model"].values())).values()
    assert (model["engine"], model["dimensions"], model["parity"]) == ("fake", 8, 0.99995)
    (batches,) = next(iter(found["batches"].values())).values()
    assert (batches["batches"], batches["budget_tokens"], batches["last_batch"]) == (0, 2048, None)
    assert (batches["batch_inputs"], batches["wait_seconds"]["bulk"]["count"]) == ({"count": 0, "mean": 0.0}, 1)
    shown = next(iter(found["ledger"].values()))
    assert shown["cpu"]["running"] == {"interactive": 0, "bulk": 1}
    assert shown["totals"]["jobs"] == {"queued": 0, "running": 1}
    assert shown["totals"]["counters"]["submitted:cpu"] == 1
    assert len(shown["totals"]["throughput"]["inputs"]) == 60


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"DEVICE": "cuda"}, ["DEVICE=cuda is absent", "found: cpu"]),
        ({"MODEL_NAME": "/nowhere/model"}, ["MODEL_NAME=/nowhere/model cannot be loaded"]),
        ({"BATCH_SIZE": "none"}, ["BATCH_SIZE", "whole number", "'none'"]),
    ],
)
def test_worker_that_cannot_work_stops_and_says_why(stack: Stack, environ: dict[str, str], words: list[str]) -> None:
    worker = stack.worker(app="worker", wait=False, **environ)
    assert wait_for(lambda: worker.popen.poll(), seconds=100, what="the worker's exit") != 0
    for word in words:
        assert word in worker.output()


def test_redis_restart_is_sat_out(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from core.ledger import connect
    from launcher.redis_server import RedisServer
    from tests.conftest import QUICK

    with RedisServer(tmp_path / "data") as server:
        stack = Stack(server.url, tmp_path, QUICK)
        ledger = Ledger(connect(server.url, timeout_seconds=5, retries=20), "vector-api:")
        try:
            stack.worker(FAKE_BATCH_SECONDS="0.1")
            submit(ledger, TEXTS * 2)
            wait_for(lambda: ledger.finished("job"), what="the first shard")
            server.stop(signal.SIGKILL)
            server.start()
            assert ended(ledger, "job").counts.done == 600
            assert_every_vector(ledger, "job", TEXTS * 2)
        finally:
            stack.close()
