"""When traces are on, and what is loaded for them."""

import importlib.util
from collections.abc import Mapping
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan
from opentelemetry.util.re import parse_env_headers

from api.server import main
from core import tracing
from core.errors import InvalidSetting
from core.tracing import MOST_LINKS, NOTHING, Span
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
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": URL, "OTEL_EXPORTER_OTLP_HEADERS": "a=Bearer b, x-key = c%20d==,"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": URL, "OTEL_BSP_MAX_QUEUE_SIZE": " 512 ", "OTEL_SPAN_LINK_COUNT_LIMIT": "0"}, True),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "secret", "OTEL_BSP_SCHEDULE_DELAY": "soon"}, False),
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
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": f"{URL}?api_key=secret"}, "OTEL_EXPORTER_OTLP_ENDPOINT must be"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": f"{URL}/#secret"}, "OTEL_EXPORTER_OTLP_ENDPOINT must be"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://user:secret@collector:port"}, "OTEL_EXPORTER_OTLP_ENDPOINT must be"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": URL, "OTEL_EXPORTER_OTLP_HEADERS": "a=b,secret"}, "OTEL_EXPORTER_OTLP_HEADERS must be"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": URL, "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "a: secret"}, "OTLP_TRACES_HEADERS must be"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": URL, "OTEL_EXPORTER_OTLP_HEADERS": "a=%0Asecret"}, "OTEL_EXPORTER_OTLP_HEADERS must be"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": URL, "OTEL_EXPORTER_OTLP_HEADERS": "a=secret;b"}, "OTEL_EXPORTER_OTLP_HEADERS must be"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": URL, "OTEL_BSP_SCHEDULE_DELAY": "0"},
            "OTEL_BSP_SCHEDULE_DELAY must be a whole number from 1",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": URL, "OTEL_SPAN_LINK_COUNT_LIMIT": "few"}, "OTEL_SPAN_LINK_COUNT_LIMIT must be"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": URL, "OTEL_BSP_MAX_QUEUE_SIZE": "100"},
            "EXPORT_BATCH_SIZE must be at most OTEL_BSP_MAX_QUEUE_S",
        ),
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


def test_headers_that_are_taken_are_those_that_opentelemetry_takes_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    characters = [chr(n) for n in range(33, 127) if chr(n) not in ",%"]
    for header in [f"{c}=b" for c in characters] + [f"a=b{c}b" for c in [*characters, " ", "\t", "\x7f", "ü"]]:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": URL, "OTEL_EXPORTER_OTLP_HEADERS": header}
        try:
            taken = tracing.require(environ)
        except InvalidSetting:
            taken = False
        caplog.clear()
        parse_env_headers(header, liberal=True)
        assert taken == (not caplog.records), header


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


def test_links_are_limited_and_the_span_says_how_many_are_left_out(recorded: InMemorySpanExporter) -> None:
    traced = {f"job_{n}": f"00-{n + 1:032x}-{n + 2:016x}-01" for n in range(MOST_LINKS + 7)}
    tracing.begin_embedding(dict(list(traced.items())[:MOST_LINKS]), 1.0, worker="w").end()
    tracing.begin_embedding(traced, 1.0, worker="w").end()
    whole, limited = recorded.get_finished_spans()
    assert dict(whole.attributes or {}) == {"vector_api.worker": "w"}
    assert dict(limited.attributes or {}) == {"vector_api.worker": "w", "vector_api.links_left_out": 7}
    assert len(whole.links) == len(limited.links) == MOST_LINKS
    for link, (job_id, traceparent) in zip(limited.links, traced.items(), strict=False):
        assert Span(NonRecordingSpan(link.context)).traceparent == traceparent
        assert (link.context.is_remote, link.attributes) == (True, {"vector_api.job": job_id})


def test_nothing_takes_what_a_span_takes() -> None:
    with NOTHING.begin("a", "producer", job="j") as span:
        span.set(queue="cpu")
        span.note("b", error="c")
        span.record("d", 1.0, inputs=2)
    span.end("error")
    tracing.stop()
    assert (span.traceparent, span.trace_id, tracing.is_on()) == ("", "", False)
