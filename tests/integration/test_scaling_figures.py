"""What KEDA reads for deploy/kubernetes/gpu: numbers, at every moment, in the answer of the real API."""

import re
from typing import Any

import pytest
import yaml

from api.app import create_app
from core.config import Settings
from core.ledger import Ledger
from tests.integration.test_worker import submit
from tests.processes import ROOT, Stack

pytestmark = pytest.mark.integration

MANIFESTS = yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "gpu" / "scaling.yaml").read_text(encoding="utf-8"))
TRIGGERS = next(found for found in MANIFESTS if found["kind"] == "ScaledObject")["spec"]["triggers"]


def value_at(answer: Any, path: str) -> Any:
    """The value at a GJSON path of the form `list.#(field=="value").field`."""
    found = re.fullmatch(r'(\w+)\.#\((\w+)=="(\w+)"\)\.(\w+)', path)
    assert found, path
    items, field, wanted, name = found.groups()
    return next(item for item in answer[items] if item[field] == wanted)[name]


def test_keda_finds_the_numbers_it_scales_on(redis_url: str, ledger: Ledger, stack: Stack) -> None:
    client = create_app(Settings.from_env({"REDIS_URL": redis_url})).test_client()

    def figures() -> dict[str, float]:
        answer = client.get("/v1/queues")
        assert answer.status_code == 200
        found = {trigger["name"]: value_at(answer.json, trigger["metadata"]["valueLocation"]) for trigger in TRIGGERS}
        assert all(type(value) in (int, float) for value in found.values())  # KEDA takes null for an error
        return found

    assert figures() == {"backlog": 0, "oldest": 0}
    submit(ledger, ["one", "two", "three"], queue="gpu")
    submit(ledger, ["another queue's"], "other", queue="cpu")
    assert figures()["backlog"] == 3
    assert 0 < figures()["oldest"] < 60
    assert ledger.claim("gpu", "worker", lease_seconds=60, max_bytes=10_000).shards
    assert figures() == {"backlog": 3, "oldest": 0}  # what runs keeps its worker
