"""How figures are written for Prometheus, where no server is needed to see it."""

import shutil
import subprocess
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

from api import create_app
from api.metrics import of_ledger, of_settings, of_workers
from core.config import Settings
from core.ledger import QueueState, Survey, Worker
from tests.processes import free_port
from worker.histograms import Histograms

CPU_FACTS = {"resident_bytes": 7, "memory_used_bytes": 8, "memory_limit_bytes": 9}
CPU = Worker("cpu@a", ("cpu", "cpu.large"), "busy", "m", "r", "torch", "cpu", "float32", 8, 256, (), CPU_FACTS, seen_at=5.5)
CUDA_FACTS = {
    "resident_bytes": 10,
    "allocated_bytes": 1,
    "reserved_bytes": 2,
    "used_bytes": 3,
    "total_bytes": 4,
    "utilization_ratio": 0.25,
    "temperature_celsius": 60,
    "power_watts": 99.5,
    "torch_alloc_retries": 2,
    "torch_ooms": 1,
}
GPU = replace(CPU, name="gpu@a", queues=("gpu",), device="cuda:0", device_name="A card", facts=CUDA_FACTS, parity=0.9998)


class Given(Collector):
    def __init__(self, families: Any) -> None:
        self.families: list[Metric] = list(families)

    def collect(self) -> list[Metric]:
        return self.families


def written(families: Any) -> tuple[str, dict[tuple[str, str], float]]:
    """The text, and its samples by name and the value of `worker`, `state` or `code`."""
    registry = CollectorRegistry()
    registry.register(Given(families))
    text = generate_latest(registry).decode()
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            label = next((sample.labels[name] for name in ("worker", "state", "code") if name in sample.labels), "")
            samples[sample.name.removeprefix("vector_api_"), label] = sample.value
    return text, samples


def test_device_is_told_as_far_as_it_is_known() -> None:
    _, found = written(of_workers((CPU, GPU)))
    on_gpu = {name.removeprefix("worker_"): value for (name, worker), value in found.items() if worker == "gpu@a"}
    assert {name: value for name, value in on_gpu.items() if name.startswith(("device_", "torch_"))} == {
        "device_memory_allocated_bytes": 1,
        "device_memory_reserved_bytes": 2,
        "device_memory_used_bytes": 3,
        "device_memory_total_bytes": 4,
        "device_utilization_ratio": 0.25,
        "device_temperature_celsius": 60,
        "device_power_watts": 99.5,
        "torch_alloc_retries_total": 2,
        "torch_ooms_total": 1,
    }
    on_cpu = {name.removeprefix("worker_"): value for (name, worker), value in found.items() if worker == "cpu@a"}
    memory = {"resident_memory_bytes": 7, "memory_used_bytes": 8, "memory_limit_bytes": 9}
    assert on_cpu == {"info": 1, "busy": 1, "last_report_timestamp_seconds": 5.5} | memory


def test_names_of_workers_and_models_cannot_break_the_text() -> None:
    name = 'a "name"\\ of\ntwo lines'
    text, found = written(of_workers((replace(CPU, name=name, model=name),)))
    assert found["worker_busy", name] == 1
    assert all(line.startswith(("#", "vector_api_worker_")) for line in text.splitlines())


def test_histogram_of_a_report_is_one_of_prometheus() -> None:
    counted = Histograms()
    for value in (1, 3, 3, 5000):
        counted.batch_inputs.count(value)
    text, found = written(of_workers((replace(CPU, histograms=counted.report()),)))
    lines = [line.split(" ") for line in text.splitlines() if line.startswith("vector_api_worker_batch_inputs_bucket")]
    assert [float(value) for _, value in lines] == [1, 1] + [3] * 9 + [4]
    assert 'le="+Inf"' in lines[-1][0]
    assert (found["worker_batch_inputs_count", "cpu@a"], found["worker_batch_inputs_sum", "cpu@a"]) == (4, 5007)
    assert {("worker_stage_seconds_count", "cpu@a"), ("worker_wait_seconds_count", "cpu@a")} <= set(found)


def test_totals_begin_at_zero_so_that_the_first_event_is_seen() -> None:
    queue = QueueState("cpu", {"interactive": 0, "bulk": 0}, {"interactive": 0, "bulk": 0}, {}, 0, ())
    survey = Survey((queue,), (), 0, {"queued": 0, "running": 0}, 0, {"failed:cpu:worker_died": 2, "claims:cpu": 9}, ())
    text, found = written(of_ledger(survey))
    assert found["inputs_failed_total", "worker_died"] == 2
    zero = [name for (name, _), value in found.items() if value == 0]
    assert {"jobs_ended_total", "inputs_embedded_total", "shards_recovered_total", "commits_refused_total"} <= set(zero)
    assert "claims" not in text


@pytest.mark.parametrize(("parity", "shown"), [("1", True), ("0", False)])
def test_floor_of_the_parity_is_shown_where_it_is_measured(parity: str, shown: bool) -> None:
    assert ("vector_api_parity_floor 0.999" in written(of_settings(Settings.from_env({"PARITY": parity})))[0]) == shown


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool comes with Prometheus")
def test_promtool_finds_no_fault_in_what_a_gpu_worker_tells() -> None:
    counted = Histograms()
    counted.batch_padding.count(0.1)
    text, _ = written(of_workers((CPU, replace(GPU, histograms=counted.report()))))
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def without_redis() -> Flask:
    return create_app(Settings(redis_url=f"redis://127.0.0.1:{free_port()}/0"))


def test_each_application_counts_its_own_requests() -> None:
    first, second = without_redis(), without_redis()
    for _ in range(3):
        first.test_client().get("/healthz")
    line = 'vector_api_http_requests_total{endpoint="/healthz",method="GET",status="200"} 3.0'
    assert line in first.test_client().get("/metrics").text
    assert "/healthz" not in second.test_client().get("/metrics").text


def test_metrics_without_redis_are_the_process_and_its_settings() -> None:
    answer = without_redis().test_client().get("/metrics")
    assert answer.status_code == 200
    names = {family.name for family in text_string_to_metric_families(answer.text)}
    ours = {"redis_up", "max_waiting_inputs", "max_waiting_bytes", "parity_floor", "http_requests", "http_request_seconds"}
    assert {name for name in names if name.startswith("vector_api_")} == {f"vector_api_{name}" for name in ours}
