"""`GPU_IDLE_EXIT_SECONDS`: real workers of the gpu queue that leave by themselves, and those that must not."""

import re
import time
from pathlib import Path

import pytest

from core.jobs import JobStatus
from core.ledger import Ledger, connect
from tests.integration.test_worker import TEXTS, ended, submit
from tests.processes import Process, Stack, wait_for

pytestmark = pytest.mark.integration

GPU = {"FAKE_DEVICE": "cuda:0", "WAKE_SECONDS": "0.2"}


def exit_code(worker: Process, seconds: float = 30) -> int:
    wait_for(lambda: worker.popen.poll() is not None, seconds=seconds, what="the worker's exit")
    return worker.popen.returncode


def test_gpu_worker_leaves_in_order_after_its_last_job(stack: Stack, ledger: Ledger) -> None:
    cpu = stack.worker("cpu", GPU_IDLE_EXIT_SECONDS="1", WAKE_SECONDS="0.2")
    worker = stack.worker("gpu", GPU_IDLE_EXIT_SECONDS="2", **GPU)
    job = ended(ledger, submit(ledger, TEXTS, queue="gpu"))
    over = time.time()
    assert (job.status, job.device) == (JobStatus.SUCCEEDED, "cuda:0")
    assert exit_code(worker) == 0, worker.output()
    assert time.time() - over > 1.5  # the time counts from the last work, not from the start
    assert "nothing to do for 2 s" in worker.output()
    assert not re.search(r"Traceback|CRITICAL|ERROR", worker.output())
    assert [found.queues for found in ledger.workers()] == [("cpu",)]
    assert cpu.popen.poll() is None


def test_gpu_worker_stays_while_work_waits_or_runs_in_one_of_its_queues(stack: Stack, ledger: Ledger) -> None:
    """A batch takes longer than the time; neither the worker that computes it leaves, nor one that could take it over."""
    slow = stack.worker("gpu,cpu", FAKE_BATCH_SECONDS="2", BATCH_SIZE="1", GPU_IDLE_EXIT_SECONDS="1", **GPU)
    submit(ledger, ["one text"], queue="cpu")
    wait_for(lambda: ledger.queue_states(["cpu"])[0].running, what="a running batch")
    idle = stack.worker("gpu,cpu", GPU_IDLE_EXIT_SECONDS="1", **GPU)
    assert ended(ledger, "job").counts.done == 1
    assert "nothing to do" not in slow.output() + idle.output()
    assert (exit_code(slow), exit_code(idle)) == (0, 0)


def test_time_without_redis_is_not_idle(tmp_path: Path) -> None:
    from worker.idle import LeaveWhenIdle

    step = LeaveWhenIdle(None)
    step._idle_since = time.monotonic() - 3600
    step._look(Ledger(connect(f"unix://{tmp_path}/nowhere.sock", timeout_seconds=1, retries=0), "vector-api:"))
    assert step._idle_since is None
