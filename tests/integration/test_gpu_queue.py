"""Work goes to the gpu queue and back as gpu workers come and go: real workers, whose engine claims to have a GPU."""

import os
import re
import shutil
import subprocess

import httpx
import pytest

from core.jobs import JobStatus
from core.ledger import Ledger
from core.routing import share_of
from tests.integration.test_worker import TEXTS, assert_every_vector, ended
from tests.ledger_driver import Driver
from tests.processes import ROOT, Process, Stack, wait_for

pytestmark = pytest.mark.integration


def post(stack: Stack, texts: list[str], **options: object) -> dict[str, object]:
    answer = httpx.post(f"{stack.base_url}/v1/jobs", json={"inputs": texts, **options}, timeout=30)
    assert answer.status_code == 202, answer.text
    return answer.json()


def queues(stack: Stack) -> dict[str, dict[str, object]]:
    return {queue["name"]: queue for queue in httpx.get(f"{stack.base_url}/v1/queues").json()["data"]}


def shares(stack: Stack) -> dict[str, tuple[object, object]]:
    return {name: (queue["auto_share"], queue["auto_share_reason"]) for name, queue in queues(stack).items()}


def answers_on_the_page(stack: Stack) -> str:
    """What the commands of docs/gpu.md that ask the API print."""
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"^```sh\n(.+?)^```", page, re.MULTILINE | re.DOTALL) if "curl" in block]
    script = "\n".join(blocks).replace("http://127.0.0.1:8000", stack.base_url).replace("curl ", "curl -sSf ")
    return subprocess.run(["bash", "-euc", script], stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout


def gpu_worker(stack: Stack, name: str, batch_seconds: str) -> Process:
    return stack.worker("gpu", name=name, FAKE_DEVICE="cuda:0", FAKE_BATCH_SECONDS=batch_seconds, BATCH_SIZE="1")


def test_auto_work_survives_the_last_gpu_worker_on_cpu_and_returns_to_the_next(stack: Stack, ledger: Ledger) -> None:
    stack.api(SHARD_INPUTS="16")
    stack.worker("cpu", name="cpu", FAKE_BATCH_SECONDS="0.1", BATCH_SIZE="1")
    gpu = gpu_worker(stack, "gpu1", "0.2")
    assert shares(stack) == {"cpu": (0.0, "setting"), "gpu": (1.0, "setting")}
    if shutil.which("curl") or "CI" in os.environ:
        page = answers_on_the_page(stack)
        assert all(found in page for found in ('"auto_share":1.0', '"device":"cpu"', '"device":"cuda:0"')), page

    texts = TEXTS[:160]
    auto = post(stack, texts)
    named = post(stack, TEXTS[:20], queue="gpu")
    assert (auto["queue"], named["queue"]) == ("gpu", "gpu")
    job_id = str(auto["id"])
    wait_for(lambda: ledger.finished(job_id), what="the first shard")
    assert ledger.get(job_id, "default").device == "cuda:0"

    gpu.kill_group()
    job = ended(ledger, job_id)
    assert (job.status, job.counts.done, job.queue, job.device) == (JobStatus.SUCCEEDED, len(texts), "cpu", "cpu")
    assert ledger.counters()["recovered"] > 0, "nothing was in flight"
    assert_every_vector(ledger, job_id, texts)
    found = queues(stack)
    assert (found["gpu"]["stalled"], found["gpu"]["waiting"]) == (True, {"interactive": 0, "bulk": 20})
    assert not found["cpu"]["stalled"]
    assert shares(stack) == {"cpu": (1.0, "no_gpu_worker"), "gpu": (0.0, "no_gpu_worker")}

    texts = TEXTS * 6
    auto = post(stack, texts)
    assert auto["queue"] == "cpu"
    job_id = str(auto["id"])
    wait_for(lambda: ledger.finished(job_id), what="the first shard on cpu")
    before = ledger.counters()["inputs:gpu"]
    gpu_worker(stack, "gpu2", "0")
    assert ended(ledger, str(named["id"])).device == "cuda:0"
    job = ended(ledger, job_id)
    assert (job.status, job.counts.done, job.queue) == (JobStatus.SUCCEEDED, len(texts), "gpu")
    assert ledger.counters()["inputs:gpu"] - before > len(texts) / 2
    assert_every_vector(ledger, job_id, texts)


def test_canary_gives_its_share_of_the_jobs_to_the_gpu_and_the_same_after_an_outage(stack: Stack, ledger: Ledger) -> None:
    stack.api(GPU_SHARE="0.4")
    driver = Driver(ledger)
    driver.report(name="c@a", queues=("cpu",))
    driver.report(name="g@a", queues=("gpu",))
    assert shares(stack) == {"cpu": (0.6, "setting"), "gpu": (0.4, "setting")}
    chosen = {str(job["id"]): job["queue"] for job in (post(stack, ["a"]) for _ in range(30))}
    assert chosen == {job_id: "gpu" if share_of(job_id) < 0.4 else "cpu" for job_id in chosen}
    assert set(chosen.values()) == {"cpu", "gpu"}
    ledger.retire("g@a", ["gpu"])
    ledger.move("c1")
    assert {ledger.get(job_id, "default").queue for job_id in chosen} == {"cpu"}
    driver.report(name="g@a", queues=("gpu",))
    ledger.move("c1")
    assert {job_id: ledger.get(job_id, "default").queue for job_id in chosen} == chosen
