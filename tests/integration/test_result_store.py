"""The whole service with its results in a folder or in S3: workers and the store die, nothing is lost, doubled or left behind."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from core.ledger import Ledger, StoringLedger, connect
from core.result_store import ResultStore
from tests.conftest import QUICK
from tests.fakes import vector_of
from tests.integration.test_worker import TEXTS, assert_every_vector, ended, submit
from tests.processes import Process, Stack, free_port, redis_client, running_stack, wait_for
from tests.s3 import BUCKET, s3_server

pytestmark = pytest.mark.integration


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"RESULT_STORE": f"file://{tmp_path}/results", "RESULT_STORE_MIN_BYTES": "0"}


@pytest.fixture
def stack(redis_url: str, tmp_path: Path, environ: dict[str, str]) -> Iterator[Stack]:
    yield from running_stack(redis_url, tmp_path, QUICK | environ)


def store_of(stack: Stack) -> ResultStore:
    return ResultStore(stack.environ["RESULT_STORE"], timeout_seconds=5, retries=0)


def ledger_of(stack: Stack) -> Ledger:
    return StoringLedger(connect(stack.redis_url, timeout_seconds=5, retries=2), "vector-api:", store_of(stack))


def assert_nothing_is_left(stack: Stack, job_id: str) -> None:
    """A deleted job's objects go, in both rounds; the second is made due."""
    wait_for(lambda: not store_of(stack).keys(job_id), what="the end of the job's objects")
    client = redis_client(stack.redis_url)
    client.zadd("vector-api:garbage", {f"{job_id}/again": 1})
    wait_for(lambda: not client.exists("vector-api:garbage"), what="the second round")
    assert not client.exists("vector-api:stored")
    assert not store_of(stack).keys(job_id)


def test_worker_killed_between_write_and_commit_loses_and_doubles_nothing(stack: Stack, tmp_path: Path) -> None:
    marker = tmp_path / "died"
    ledger = ledger_of(stack)
    submit(ledger, TEXTS)
    stack.worker(FAKE_KILL_AFTER_STORE=str(marker), wait=False)
    wait_for(marker.exists, what="the worker's death")
    job = ended(ledger, "job")
    assert (job.counts.done, job.counts.failed) == (300, 0)
    assert_every_vector(ledger, "job", TEXTS)
    assert len(store_of(stack).keys("job")) > len(ledger.finished("job")), "what the dead worker wrote is there, and not read"
    assert redis_client(stack.redis_url).memory_usage("vector-api:vectors:job") < 300 * 8 * 4
    ledger.remove("job", "default")
    assert_nothing_is_left(stack, "job")


def test_store_that_fails_for_a_while_fails_no_input(stack: Stack, tmp_path: Path) -> None:
    results = tmp_path / "results"
    ledger = ledger_of(stack)
    worker = stack.worker(FAKE_BATCH_SECONDS="0.05")
    shutil.rmtree(results)
    results.write_text("no folder any more")
    submit(ledger, TEXTS)
    wait_for(lambda: "results cannot be stored" in worker.output(), what="the worker's complaint")
    wait_for(lambda: not ledger.queue_states(["cpu"])[0].running, what="the return of its shards")
    assert ledger.get("job", "default").counts.done == 0
    results.unlink()
    job = ended(ledger, "job")
    assert (job.counts.done, job.counts.failed) == (300, 0)
    assert_every_vector(ledger, "job", TEXTS)
    assert "results can be stored again" in worker.output()
    assert "worker_died" not in worker.output()


def test_api_reads_from_s3_and_says_when_it_cannot(redis_url: str, tmp_path: Path) -> None:
    port = free_port()
    settings = {"RESULT_STORE": f"s3://{BUCKET}/results", "RESULT_STORE_MIN_BYTES": "0", "SHARD_INPUTS": "16"}
    with s3_server(tmp_path, port) as environ, pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        for stack in running_stack(redis_url, tmp_path, QUICK | settings | environ):
            api = stack.api()
            stack.worker()
            client = httpx.Client(base_url=stack.base_url, timeout=60)
            job = client.post("/v1/jobs", params={"wait": 30}, json={"inputs": TEXTS[:100]}).raise_for_status().json()
            assert job["status"] == "succeeded"
            found = np.array([item["embedding"] for item in job["data"]])
            assert np.allclose(found, [vector_of(text) for text in TEXTS[:100]], atol=1e-6)
            job_id = job["id"]
            page = client.get(f"/v1/jobs/{job_id}/result", params={"offset": 30, "limit": 10}).json()
            assert [item["index"] for item in page["data"]] == list(range(30, 40))
            assert store_of(stack).keys(job_id)
            assert client.delete(f"/v1/jobs/{job_id}").json()["deleted"]
            assert_nothing_is_left(stack, job_id)
            job_id = client.post("/v1/jobs", params={"wait": 30}, json={"inputs": TEXTS[:20]}).json()["id"]
            client.close()
            if sys.platform == "linux":
                # The library of 16 MB that reading has loaded; and OpenTelemetry's, which redis-py loads where it is installed
                assert resident_bytes(api) < 90 * 10**6
            assert len(httpx.get(f"{stack.base_url}/v1/jobs/{job_id}/map").raise_for_status().json()["points"]) == 20
            stack.environ["RESULT_STORE"] = "s3://elsewhere/x"
            stack.api(AWS_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}")
            answer = httpx.get(f"{stack.base_url}/v1/jobs/{job_id}/result", timeout=60)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "result_store_unavailable")
            assert "s3://elsewhere/x" in answer.json()["error"]["message"]
            assert answer.headers["Retry-After"]
            assert httpx.get(f"{stack.base_url}/v1/jobs/{job_id}").json()["status"] == "succeeded"


def test_worker_does_not_start_where_it_can_never_store(stack: Stack) -> None:
    worker = stack.worker(wait=False, RESULT_STORE="file:///proc/nowhere")
    assert wait_for(lambda: worker.popen.poll(), seconds=60, what="the worker's exit") == 3
    assert "cannot start: the result store file:///proc/nowhere" in worker.output()


def resident_bytes(api: Process) -> int:
    """Memory of the process that serves, whose parent is `api`."""
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in api.children()]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")
