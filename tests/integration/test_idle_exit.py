"""`GPU_IDLE_EXIT_SECONDS`: real workers of the gpu queue that leave by themselves, and when they must not."""

import re
import time
from datetime import datetime
from pathlib import Path

import pytest

from core.jobs import JobStatus
from core.ledger import Ledger, connect
from tests.integration.test_worker import TEXTS, ended, submit
from tests.processes import Process, Stack, wait_for

pytestmark = pytest.mark.integration

GPU = {"FAKE_DEVICE": "cuda:0", "WAKE_SECONDS": "0.2", "GPU_IDLE_EXIT_SECONDS": "1"}


def left_at(worker: Process) -> float:
    """When the worker said that it leaves, after it has ended in order."""
    wait_for(lambda: worker.popen.poll() is not None, what="the worker's exit")
    assert worker.popen.returncode == 0, worker.output()
    assert not re.search(r"Traceback|CRITICAL|ERROR", worker.output())
    (said,) = (line for line in worker.lines() if line["message"].startswith("leaving: nothing to do for 1 s"))
    return datetime.fromisoformat(said["time"]).timestamp()


def test_gpu_worker_leaves_in_order_after_its_last_job(stack: Stack, ledger: Ledger) -> None:
    cpu = stack.worker("cpu", **GPU)
    worker = stack.worker("gpu", **GPU)
    job = ended(ledger, submit(ledger, TEXTS, queue="gpu"))
    assert (job.status, job.device) == (JobStatus.SUCCEEDED, "cuda:0")
    assert left_at(worker) - (job.ended_at or 0) > 0.9
    assert [found.queues for found in ledger.workers()] == [("cpu",)]
    assert cpu.popen.poll() is None


def test_gpu_worker_stays_while_others_work_and_while_it_computes(stack: Stack, ledger: Ledger) -> None:
    submit(ledger, ["one text"], queue="cpu")
    shards = ledger.claim("cpu", "other", lease_seconds=60, max_bytes=10_000).shards
    assert shards
    worker = stack.worker("gpu,cpu", FAKE_BATCH_SECONDS="2", **GPU)
    began = time.monotonic()
    wait_for(lambda: time.monotonic() - began > 2 or worker.popen.poll() is not None, what="longer than it would stay idle")
    assert worker.popen.poll() is None
    ledger.release("cpu", "other", shards)
    job = ended(ledger, "job")
    assert job.counts.done == 1
    assert left_at(worker) - (job.ended_at or 0) > 0.9


def test_time_without_redis_is_not_idle(tmp_path: Path) -> None:
    from worker.idle import LeaveWhenIdle

    step = LeaveWhenIdle(None)
    step._idle_since = time.monotonic() - 3600
    step._look(Ledger(connect(f"unix://{tmp_path}/nowhere.sock", timeout_seconds=1, retries=0), "vector-api:"))
    assert step._idle_since is None
