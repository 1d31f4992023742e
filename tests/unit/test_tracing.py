"""When traces are on, and what is loaded for them."""

import importlib.util
from collections.abc import Mapping
from typing import Any

import pytest

from api.server import main
from core import tracing
from core.errors import InvalidSetting
from core.tracing import NOTHING
from tests.unit.test_imports import loaded_by

URL = "http://collector:4318"


@pytest.mark.parametrize(
    ("environ", "on"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": URL}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{URL}/v1/traces", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": URL, "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_endpoint_switches_traces_on(environ: Mapping[str, str], on: bool) -> None:
    assert tracing.require(environ) == on


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT must be http://"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "grpc://user:secret@collector"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT must be"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": URL, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http/protobuf, got 'grpc'"),
    ],
)
def test_what_cannot_be_sent_to_stops_the_process_at_start(
    environ: Mapping[str, str], names: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert main() == 2
    assert names in capsys.readouterr().err
    with pytest.raises(InvalidSetting) as caught:
        tracing.require(environ)
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("package", ["opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"])
def test_missing_packages_are_named_with_what_installs_them(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec

    def find(name: str, *args: Any) -> Any:
        if name == package:
            raise ModuleNotFoundError(name)
        return find_spec(name, *args)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(InvalidSetting, match=r"pip install -r requirements-tracing\.txt"):
        tracing.require({"OTEL_EXPORTER_OTLP_ENDPOINT": URL})


@pytest.mark.parametrize("statement", ["import api; api.create_app()", "import worker, worker.drain"])
def test_nothing_of_it_is_loaded_while_it_is_off(statement: str) -> None:
    """redis-py loads what it needs for metrics of its own, where it finds it."""
    used = {"opentelemetry.sdk.trace", "opentelemetry.exporter", "opentelemetry.trace.propagation.tracecontext"}
    loaded_by(f"{statement}\nimport sys\nassert not {used} & set(sys.modules)")


def test_nothing_takes_what_a_span_takes() -> None:
    with NOTHING.begin("a", "producer", job="j") as span:
        span.set(queue="cpu")
        span.note("b", error="c")
        span.record("d", 1.0, inputs=2)
    span.end("error")
    tracing.stop()
    assert (span.traceparent, span.trace_id, tracing.is_on()) == ("", "", False)
