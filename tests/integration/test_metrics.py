"""`/metrics` of a real API, with a real worker: what it shows, how it is written, and what it shows while Redis is away."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from launcher.redis_server import RedisServer
from tests.conftest import QUICK
from tests.integration.test_api_access import make_key
from tests.processes import ROOT, Stack, running_stack, wait_for

pytestmark = pytest.mark.integration

MOST_SECONDS = 1.5
"""The promise is one second; the rest is for a busy test machine."""

CUDA_ONLY = {
    *(f"vector_api_worker_device_memory_{kind}_bytes" for kind in ("allocated", "reserved", "used", "total")),
    "vector_api_worker_device_utilization_ratio",
    "vector_api_worker_device_temperature_celsius",
    "vector_api_worker_device_power_watts",
    "vector_api_worker_torch_alloc_retries_total",
    "vector_api_worker_torch_ooms_total",
}

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Scrape:
    """What one answer of `/metrics` says."""

    def __init__(self, client: httpx.Client) -> None:
        answer = client.get("/metrics")
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        self.text = answer.text
        self.families = {family.name: family for family in text_string_to_metric_families(self.text)}
        self.samples: Samples = {}
        for family in self.families.values():
            for sample in family.samples:
                name = (sample.name, tuple(sorted(sample.labels.items())))
                assert name not in self.samples, f"{name} is there twice"
                self.samples[name] = sample.value

    def value(self, name: str, **labels: str) -> float | None:
        return self.samples.get((f"vector_api_{name}", tuple(sorted(labels.items()))))

    def of(self, name: str) -> dict[tuple[tuple[str, str], ...], float]:
        """All samples of a name, by their labels."""
        return {labels: value for (found, labels), value in self.samples.items() if found == f"vector_api_{name}"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("metrics") / "redis", {"appendfsync": "no", "maxmemory": "1gb"}) as found:
        yield found


@pytest.fixture(scope="module")
def busy(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An API and a cpu worker that has done some of all there is: texts that fail, that are cut, that run out of memory."""
    for stack in running_stack(server.url, tmp_path_factory.mktemp("stack"), QUICK | {"CACHE_BYTES": "10000000"}):
        stack.api()
        stack.worker(name="w")
        with httpx.Client(base_url=stack.base_url, timeout=60) as client:
            for inputs in (
                ["a text", "another one", "word " * 300],
                ["a text"],
                ["RAISE"],
                ["OOM:1 one", "OOM:1 two", "OOM:1 three"],
            ):
                answer = client.post("/v1/jobs?wait=20", json={"inputs": inputs, "queue": "cpu"})
                assert answer.json()["status"] in ("succeeded", "failed"), answer.text
            client.post("/v1/jobs", json={"inputs": ["waits", "too"], "queue": "gpu", "priority": "interactive"})
            client.get("/v1/jobs/job_none")
            client.get("/nothing/here")
            client.get("/nothing/there")
            client.request("BREW", "/v1/jobs")
            wait_for(lambda: sum(Scrape(client).of("worker_inputs_total").values()) == 6, what="the worker's last report")
        yield stack


@pytest.fixture
def scrape(busy: Stack) -> Scrape:
    with httpx.Client(base_url=busy.base_url, timeout=60) as client:
        return Scrape(client)


def test_counters_tell_what_has_become_of_inputs(scrape: Scrape) -> None:
    assert scrape.value("jobs_submitted_total", queue="cpu") == 4
    assert scrape.value("jobs_submitted_total", queue="gpu") == 1
    assert [scrape.value("jobs_ended_total", state=state) for state in ("succeeded", "failed", "cancelled")] == [3, 1, 0]
    assert scrape.value("inputs_embedded_total", queue="cpu") == 7
    assert scrape.value("inputs_finished_total", queue="cpu") == 8
    assert scrape.value("inputs_cached_total", queue="cpu") == 1
    assert scrape.value("inputs_truncated_total", queue="cpu") == 1
    poison = {(("code", code), ("queue", queue)): 0 for code in ("worker_died", "worker_hung") for queue in ("cpu", "gpu")}
    assert scrape.of("inputs_failed_total") == poison | {(("code", "embedding_failed"), ("queue", "cpu")): 1}
    assert scrape.value("tokens_embedded_total", queue="cpu") > 256
    assert scrape.value("shards_recovered_total") == 0


def test_gauges_tell_what_waits_and_who_works(scrape: Scrape, busy: Stack) -> None:
    assert scrape.value("waiting_inputs", queue="gpu", lane="interactive") == 2
    assert scrape.value("waiting_inputs", queue="cpu", lane="bulk") == 0
    assert scrape.value("oldest_waiting_seconds", queue="gpu", lane="interactive") > 0
    assert scrape.value("oldest_waiting_seconds", queue="gpu", lane="bulk") == 0
    assert set(scrape.of("running_inputs").values()) == {0}
    assert scrape.of("jobs") == {(("state", "queued"),): 1, (("state", "running"),): 0}
    assert scrape.value("kept_jobs") == 4
    assert scrape.of("workers") == {(("queue", "cpu"),): 1, (("queue", "gpu"),): 0}
    assert scrape.value("max_waiting_inputs") == 20_000_000
    assert scrape.value("parity_floor") == 0.999
    assert scrape.value("redis_up") == 1
    assert scrape.value("redis_memory_max_bytes") == 2**30
    assert 0 < scrape.value("redis_memory_used_bytes") < 2**30


def test_worker_tells_what_it_is_and_how_its_batches_were(scrape: Scrape) -> None:
    (info,) = scrape.of("worker_info")
    found = dict(info)
    worker = found.pop("worker")
    assert worker.startswith("w@")
    assert (found["queues"], found["engine"], found["device"], found["dtype"]) == ("cpu", "fake", "cpu", "float32")
    assert scrape.value("worker_parity", worker=worker) == 0.99995
    assert scrape.value("worker_budget_tokens", worker=worker) > 0
    assert abs(scrape.value("worker_last_report_timestamp_seconds", worker=worker) - time.time()) < 30
    assert scrape.value("worker_out_of_memory_total", worker=worker) >= 1
    batches = scrape.value("worker_batches_total", worker=worker)
    assert scrape.value("worker_batch_inputs_count", worker=worker) == batches
    assert scrape.value("worker_batch_inputs_sum", worker=worker) == 6
    assert scrape.value("worker_batch_tokens_sum", worker=worker) == scrape.value("worker_tokens_total", worker=worker)
    assert scrape.value("worker_padding_tokens_total", worker=worker) > 0
    assert scrape.value("worker_batch_padding_ratio_bucket", worker=worker, le="0.0") < batches
    assert scrape.value("worker_wait_seconds_count", worker=worker, lane="bulk") == 4
    assert 0 < scrape.value("worker_memory_used_bytes", worker=worker) < scrape.value("worker_memory_limit_bytes", worker=worker)
    for stage, count in {"tokenize": 3, "forward": batches, "commit": 4}.items():
        assert scrape.value("worker_stage_seconds_count", worker=worker, stage=stage) == count
        assert scrape.value("worker_stage_seconds_bucket", worker=worker, stage=stage, le="+Inf") == count


def test_requests_are_told_by_their_route_and_never_by_their_path(scrape: Scrape) -> None:
    assert scrape.value("http_requests_total", method="POST", endpoint="/v1/jobs", status="200") == 4
    assert scrape.value("http_requests_total", method="POST", endpoint="/v1/jobs", status="202") == 1
    assert scrape.value("http_requests_total", method="GET", endpoint="/v1/jobs/{job_id}", status="404") == 1
    assert scrape.value("http_requests_total", method="GET", endpoint="unknown", status="404") == 2
    assert scrape.value("http_requests_total", method="_OTHER", endpoint="unknown", status="405") == 1
    assert scrape.value("http_request_seconds_count", method="POST", endpoint="/v1/jobs") == 5
    assert "nothing" not in scrape.text


def test_answer_that_is_sent_as_it_is_made_counts_when_it_ends(busy: Stack) -> None:
    labels = {"method": "GET", "endpoint": "/v1/jobs/{job_id}/events", "status": "200"}
    with httpx.Client(base_url=busy.base_url, timeout=60) as client:
        job = client.post("/v1/jobs", json={"inputs": ["a"], "queue": "gpu"}).json()["id"]
        with client.stream("GET", f"/v1/jobs/{job}/events") as events:
            next(events.iter_lines())
            assert Scrape(client).value("http_requests_total", **labels) is None
            assert client.post(f"/v1/jobs/{job}/cancel").status_code == 200
        wait_for(lambda: Scrape(client).value("http_requests_total", **labels) == 1, what="the end of the stream")


def test_every_metric_is_in_the_documentation_and_no_other(scrape: Scrape) -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    told = set(re.findall(r"^\| `(vector_api_[a-z_]+)`", text, re.MULTILINE))
    shown = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in scrape.families.values()
        if family.name.startswith("vector_api_")
    }
    assert shown >= CUDA_ONLY, "families without samples are told, too"
    assert told == shown


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool comes with Prometheus")
def test_promtool_finds_no_fault(scrape: Scrape) -> None:
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=scrape.text, capture_output=True, text=True, timeout=60, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_metrics_need_a_key_where_there_are_keys_and_count_against_no_limit(server: RedisServer, tmp_path: Path) -> None:
    key = make_key(tmp_path / "keys", "alice")
    limits = {"API_KEYS_FILE": str(tmp_path / "keys"), "MAX_TENANT_REQUESTS_PER_MINUTE": "1"}
    for stack in running_stack(server.url, tmp_path, QUICK | limits):
        stack.api()
        assert httpx.get(f"{stack.base_url}/metrics").status_code == 401
        for _ in range(3):
            answer = httpx.get(f"{stack.base_url}/metrics", headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == 200


@pytest.mark.parametrize("way", ["frozen", "dead"])
def test_metrics_are_answered_while_redis_is_away(tmp_path: Path, way: str) -> None:
    limits = {"MAX_TENANT_REQUESTS_PER_MINUTE": "100"}
    with RedisServer(tmp_path / "redis", {"appendfsync": "no"}) as server:
        for stack in running_stack(server.url, tmp_path, QUICK | limits):
            stack.api()
            with httpx.Client(base_url=stack.base_url, timeout=30) as client:
                assert Scrape(client).value("redis_up") == 1
                assert server.process is not None
                os.kill(server.process.pid, signal.SIGSTOP) if way == "frozen" else server.stop(signal.SIGKILL)
                try:
                    begun = time.monotonic()
                    found = Scrape(client)
                    seconds = time.monotonic() - begun
                finally:
                    os.kill(server.process.pid, signal.SIGCONT) if way == "frozen" else server.start()
                assert seconds < MOST_SECONDS
                assert found.value("redis_up") == 0
                assert found.value("max_waiting_inputs") == 20_000_000
                assert found.value("http_requests_total", method="GET", endpoint="/metrics", status="200") == 1
                assert "process_resident_memory_bytes" in found.families
                assert found.of("waiting_inputs") == {}
                wait_for(lambda: Scrape(client).value("redis_up") == 1, what="the figures in Redis")
