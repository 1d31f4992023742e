"""Engines that do not come back, inputs that cannot be read, and a ledger of a newer version: real workers."""

import os
import signal
import subprocess
import time
from pathlib import Path

import httpx
import msgpack
import pytest

from core.jobs import JobStatus
from core.ledger import Ledger
from core.ledger.ledger import LAYOUT
from tests.integration.test_worker import TEXTS, assert_every_vector, ended, submit
from tests.processes import Stack, redis_client, wait_for

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("marker", "neighbours", "attempts"),
    [
        pytest.param("HANG for ever", 20, 2, id="other threads run"),
        pytest.param("FREEZE for ever", 0, 1, id="no other thread runs"),
    ],
)
def test_text_that_hangs_fails_alone_and_says_so(
    stack: Stack, ledger: Ledger, marker: str, neighbours: int, attempts: int
) -> None:
    worker = stack.worker(HANG_SECONDS="2", MAX_ATTEMPTS=str(attempts))
    texts = [*TEXTS[:neighbours], marker, *TEXTS[neighbours : 2 * neighbours]]
    job = ended(ledger, submit(ledger, texts), seconds=100)
    assert (job.counts.done, job.counts.failed) == (2 * neighbours, 1)
    assert [(error.index, error.code) for error in job.errors] == [(neighbours, "worker_hung")]
    assert f"hung {attempts} times" in job.errors[0].message
    assert_every_vector(ledger, "job", texts, but=frozenset({neighbours}))
    assert worker.output().count("HANG_SECONDS") == attempts + 1 + bool(neighbours)
    assert ledger.counters()["hung:cpu"] == attempts + bool(neighbours)
    assert ledger.counters()["hangs:cpu"] == attempts + 1 + bool(neighbours), "also the first one, in company"
    assert worker.popen.poll() is None
    assert ended(ledger, submit(ledger, TEXTS, "next")).counts.done == 300


def test_long_call_shows_in_the_report_and_neither_it_nor_its_death_is_a_hang(stack: Stack, ledger: Ledger) -> None:
    """What a killed process wrote about its last call is still there when the next one begins."""
    worker = stack.worker(HANG_SECONDS="4", FAKE_BATCH_SECONDS="2")
    submit(ledger, ["a text"])
    wait_for(lambda: ledger.workers()[0].facts["engine_call_seconds"] > 0.5, what="the report of a long call")
    for child in worker.children():
        subprocess.run(["kill", "-9", str(child)], check=False)
    assert ended(ledger, "job").counts.done == 1
    assert "HANG_SECONDS" not in worker.output()


def test_worker_that_stood_still_is_not_taken_for_hung(stack: Stack, ledger: Ledger, tmp_path: Path) -> None:
    worker = stack.worker(app="tests.faults.app", HANG_SECONDS="4", LEASE_SECONDS="60")
    children, held = worker.children(), tmp_path / "go"
    submit(ledger, [f"HOLD {held}"])
    wait_for(held.with_suffix(".held").exists, what="the batch")
    os.killpg(worker.pid, signal.SIGSTOP)
    stopped = time.monotonic()
    wait_for(lambda: time.monotonic() - stopped > 5.5, what="the end of the pause")
    os.killpg(worker.pid, signal.SIGCONT)
    going = time.monotonic()
    wait_for(lambda: time.monotonic() - going > 1.5 or worker.children() != children, what="looks of the watchdogs")
    held.touch()
    assert ended(ledger, "job").counts.done == 1
    assert worker.children() == children
    assert "HANG_SECONDS" not in worker.output()


def test_shard_of_another_version_fails_at_once_and_the_worker_lives_on(stack: Stack, ledger: Ledger) -> None:
    submit(ledger, TEXTS[:48])
    redis_client(stack.redis_url).hset("vector-api:inputs:job", "16+16", msgpack.packb({"v": 9, "words": []}))
    redis_client(stack.redis_url).hset("vector-api:inputs:job", "32+16", b"\xc1 no msgpack")
    worker = stack.worker()
    children = worker.children()
    job = ended(ledger, "job")
    assert (job.status, job.counts.done, job.counts.failed) == (JobStatus.SUCCEEDED, 16, 32)
    assert {error.code for error in job.errors} == {"unreadable_input"}
    assert "version 9" in job.errors[0].message
    assert "damaged" in job.errors[-1].message
    assert_every_vector(ledger, "job", TEXTS[:48], but=frozenset(range(16, 48)))
    assert worker.children() == children


def test_older_processes_refuse_a_newer_ledger(stack: Stack, ledger: Ledger) -> None:
    stack.api()
    running = stack.worker()
    redis_client(stack.redis_url).set("vector-api:version", LAYOUT + 1)
    assert wait_for(lambda: running.popen.poll(), seconds=90, what="the worker's exit") == 3, running.output()
    late = stack.worker(wait=False)
    assert wait_for(lambda: late.popen.poll(), seconds=90, what="the worker's exit") == 3, late.output()
    for worker in (running, late):
        assert f"layout {LAYOUT + 1}, this one knows {LAYOUT}" in worker.output()
    with httpx.Client(base_url=stack.base_url, timeout=10) as client:
        for answer in (
            client.get("/readyz"),
            client.post("/v1/jobs", json={"inputs": ["a text"]}),
            client.get("/v1/jobs/job_1"),
        ):
            assert answer.status_code == 503, answer.text
            assert answer.json()["error"]["code"] == "newer_layout"
            assert f"layout {LAYOUT + 1}, this one knows {LAYOUT}" in answer.json()["error"]["message"]
        assert client.get("/healthz").status_code == 200
