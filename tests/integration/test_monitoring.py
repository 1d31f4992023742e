"""A real Prometheus with the repository's own configuration, rules and board, on a real API and worker that have seen trouble."""

import contextlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from core.ledger import Ledger, Worker, connect
from launcher.redis_server import RedisServer
from tests.conftest import QUICK
from tests.processes import ROOT, Process, Stack, free_port, running_stack, wait_for

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("prometheus") is None and "CI" not in os.environ, reason="needs prometheus"),
]

BOARD = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "vector-api.json").read_text(encoding="utf-8"))
QUERIES = {
    f"{panel['title']} ({panel['id']}{target['refId']})": target["expr"]
    for panel in BOARD["panels"]
    for target in panel.get("targets", [])
}
GROUPS = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yml").read_text(encoding="utf-8"))["groups"]
RULES: dict[str, str] = {rule["alert"]: rule["expr"] for group in GROUPS for rule in group["rules"]}
SELECTOR = re.compile(r"\b(?:vector_api_\w+|up)(?:\{[^}]*\})?")
"""A series as a rule asks for it, labels and all."""

FIRE = {"VectorApiPoison", "VectorApiWorkersDie", "VectorApiParity"}
"""What the trouble of `monitored` sets off; other alerts need many minutes."""


class Prometheus:
    """A running Prometheus."""

    def __init__(self, process: Process, client: httpx.Client) -> None:
        self.process = process
        self._client = client

    def get(self, path: str, **parameters: str) -> Any:
        answer = self._client.get(f"/api/v1/{path}", params=parameters)
        assert answer.status_code == 200, (parameters, answer.text)
        return answer.json()["data"]

    def ready(self) -> bool:
        assert self.process.popen.poll() is None, self.process.output()
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def up(self) -> bool:
        return [target["health"] for target in self.get("targets")["activeTargets"]] == ["up", "up"]

    def numbers(self, expression: str) -> list[float]:
        """The values of an expression's series now, without those that are not a number."""
        values = [float(series["value"][1]) for series in self.get("query", query=expression)["result"]]
        return [value for value in values if not math.isnan(value)]

    def alerts(self, state: str) -> set[str]:
        return {found["labels"]["alertname"] for found in self.get("alerts")["alerts"] if found["state"] == state}


@contextlib.contextmanager
def started_prometheus(stack: Stack, secrets: Path) -> Iterator[Prometheus]:
    """The compose file's Prometheus: its configuration, rules and key. It looks each second, and has two addresses of the API."""
    folder = stack.folder / "prometheus"
    shutil.copytree(ROOT / "deploy" / "prometheus", folder)
    config = (folder / "prometheus.yml").read_text(encoding="utf-8")
    port = stack.base_url.rpartition(":")[2]
    replaced = {
        '"api:8000"': f'"127.0.0.1:{port}", "localhost:{port}"',
        "/run/secrets/prometheus_key": str(secrets / "prometheus_key"),
        "scrape_interval: 15s": "scrape_interval: 1s",
        "scrape_timeout: 10s": "scrape_timeout: 1s",
        "evaluation_interval: 15s": "evaluation_interval: 1s",
    }
    for before, now in replaced.items():
        assert config.count(before) == 1, before
        config = config.replace(before, now)
    (folder / "prometheus.yml").write_text(config, encoding="utf-8")
    port = free_port()
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    process = stack._start("prometheus", [*command, f"--web.listen-address=127.0.0.1:{port}"], {})
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
        found = Prometheus(process, client)
        wait_for(found.ready, what="Prometheus' start")
        wait_for(found.up, what="the first scrape")
        yield found


def gpu_worker() -> Worker:
    """A report as a worker on CUDA makes it: the device is nearly full, and its vectors are off."""
    memory = {"allocated_bytes": 7 << 30, "reserved_bytes": 9 << 30, "used_bytes": 78 << 30, "total_bytes": 80 << 30}
    device = {"utilization_ratio": 0.5, "temperature_celsius": 61, "power_watts": 250.5}
    counted = {"inputs": 10, "batches": 2, "tokens": 100, "padding_tokens": 10, "out_of_memory": 1, "budget_tokens": 8192}
    return Worker(
        name="gpu@made-up",
        queues=("gpu",),
        state="busy",
        model="sentence-transformers/all-MiniLM-L6-v2",
        revision="fake",
        engine="torch",
        device="cuda:0",
        dtype="float16",
        dimensions=8,
        max_tokens=256,
        prompts=(),
        facts=memory
        | device
        | counted
        | {"torch_alloc_retries": 1, "torch_ooms": 0, "resident_bytes": 2 << 30}
        | {"memory_used_bytes": 3 << 30, "memory_limit_bytes": 8 << 30},
        parity=0.9,
        device_name="NVIDIA H100",
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), {"appendfsync": "no", "maxmemory": "1gb"}) as found:
        yield found


@pytest.fixture(scope="module")
def monitored(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Prometheus]]:
    """An API that asks for keys, a worker that has died of a text and works now, one that says it has a GPU, and Prometheus."""
    folder = tmp_path_factory.mktemp("monitored")
    shutil.copy(ROOT / "deploy" / "make-secrets.sh", folder)
    subprocess.run(["sh", folder / "make-secrets.sh"], capture_output=True, timeout=60, check=True)
    keys = folder / "secrets" / "api_keys"
    made = subprocess.run(
        [sys.executable, "-m", "core.keys", "tester"],
        cwd=ROOT,
        env=os.environ | {"API_KEYS_FILE": str(keys)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    mine = {"Authorization": f"Bearer {made.stdout.strip()}"}
    environ = QUICK | {"MAX_ATTEMPTS": "1", "LEASE_SECONDS": "1", "SHARD_INPUTS": "16", "API_KEYS_FILE": str(keys)}
    for stack in running_stack(server.url, folder, environ):
        stack.api()
        ledger = Ledger(connect(server.url, timeout_seconds=5, retries=2), "vector-api:")
        ledger.report(gpu_worker(), lifetime_seconds=600)
        stack.worker("cpu", name="real", wait=False, BATCH_SIZE="1", FAKE_BATCH_SECONDS="0.05")
        with started_prometheus(stack, folder / "secrets") as prometheus:
            with httpx.Client(base_url=stack.base_url, headers=mine, timeout=60) as client:
                # Only now, as the counters that alerts look at have been scraped before they grow
                poison = client.post("/v1/jobs?wait=30", json={"inputs": ["KILL"], "queue": "cpu"}).json()
                assert [error["code"] for error in poison["errors"]] == ["worker_died"]
                # Enough for the rest of the tests: two of these texts are a batch.
                texts = [f"{n} " + "word " * 120 for n in range(6000)]
                assert client.post("/v1/jobs", json={"inputs": texts, "queue": "cpu"}).status_code == 202
            yield stack, prometheus


def test_the_compose_files_prometheus_is_let_in_and_loads_its_rules(monitored: tuple[Stack, Prometheus]) -> None:
    stack, prometheus = monitored
    assert httpx.get(f"{stack.base_url}/metrics").status_code == 401
    assert prometheus.up()
    groups = prometheus.get("rules")["groups"]
    assert {rule["name"] for group in groups for rule in group["rules"]} == set(RULES)
    wait_for(lambda: {rule["health"] for group in prometheus.get("rules")["groups"] for rule in group["rules"]} == {"ok"})


def test_alerts_are_set_off_by_real_trouble_and_by_nothing_else(monitored: tuple[Stack, Prometheus]) -> None:
    _, prometheus = monitored
    wait_for(lambda: prometheus.alerts("firing") == FIRE, what="the alerts of a poison text and of a parity too low")
    wait_for(lambda: prometheus.alerts("pending") == {"VectorApiDeviceMemory"}, what="the alert of a full device")


def test_every_query_of_the_board_has_an_answer(monitored: tuple[Stack, Prometheus]) -> None:
    _, prometheus = monitored
    empty = dict(QUERIES)

    def none_is_empty() -> bool:
        for name, expression in list(empty.items()):
            # What Grafana puts in: four scrapes, and all queues
            if prometheus.numbers(expression.replace("$__rate_interval", "4s").replace("$queue", ".+")):
                del empty[name]
        return not empty

    try:
        wait_for(none_is_empty, what="an answer to each query")
    except AssertionError:
        pytest.fail(f"no number for {empty}")


def test_every_series_that_an_alert_looks_at_is_there(monitored: tuple[Stack, Prometheus]) -> None:
    _, prometheus = monitored
    looked_at = {selector for expression in RULES.values() for selector in SELECTOR.findall(expression)}
    assert len(looked_at) > len(RULES)
    failed = {selector for selector in looked_at if 'status=~"5.."' in selector}
    assert len(failed) == 1
    looked_at -= failed  # nothing was answered with 5xx so far
    wait_for(lambda: all(prometheus.numbers(selector) for selector in looked_at), what="all series")


def test_what_every_api_process_tells_alike_is_not_added_up(monitored: tuple[Stack, Prometheus]) -> None:
    _, prometheus = monitored
    gauges = [
        expr.replace("$queue", ".+") for expr in QUERIES.values() if not re.search(r"rate\(|increase\(|process_|ALERTS", expr)
    ]
    assert len(gauges) > 20

    def alike(expression: str) -> bool:
        of_one = SELECTOR.sub(lambda found: f"({found[0]} and on (instance) up{{instance=~'127.+'}})", expression)
        one, both = sum(prometheus.numbers(of_one)), sum(prometheus.numbers(expression))
        return math.isclose(one, both, rel_tol=0.25)  # it moves on while it is asked

    for expression in gauges:
        wait_for(lambda expression=expression: alike(expression), what=f"the same from one as from both: {expression}")


def test_alerts_tell_a_redis_that_is_away_from_an_api_that_is(monitored: tuple[Stack, Prometheus], server: RedisServer) -> None:
    stack, prometheus = monitored
    api = stack.started[0]
    server.stop()

    def pending() -> set[str]:
        return prometheus.alerts("pending") & {"VectorApiRedisDown", "VectorApiDown"}

    wait_for(lambda: pending() == {"VectorApiRedisDown"}, what="the alert of Redis alone")
    api.kill_group()
    wait_for(lambda: pending() == {"VectorApiDown"}, what="the alert of the API alone")
