"""OpenTelemetry: what real processes send to a real receiver."""

import os
import socket
import time
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from api import create_app
from core import tracing
from core.config import Settings
from core.errors import DeviceLost, LedgerUnavailable
from core.ledger import Ledger
from tests.integration import test_worker
from tests.integration.test_drain import Device, drain, leases_run_out
from tests.integration.test_worker import TEXTS, ended
from tests.ledger_driver import Driver
from tests.otlp_receiver import Received, receiving
from tests.processes import Stack, free_port, redis_client, wait_for

pytestmark = pytest.mark.integration

MARKER = "Zwergspitzmaus"
CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = "00-1bf7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"

SERVER, PRODUCER, CONSUMER = 2, 4, 5
"""Kinds of spans, as OTLP numbers them."""


def submit(stack: Stack, texts: list[str], traceparent: str = "") -> dict:
    headers = {"traceparent": traceparent} if traceparent else {}
    answer = httpx.post(f"{stack.base_url}/v1/jobs", json={"inputs": texts}, headers=headers)
    return {"id": answer.json()["id"], "request_id": answer.headers["x-request-id"]}


def of_job(spans: list[Received], job_id: str) -> Received:
    (found,) = (span for span in spans if span.attributes["vector_api.job"] == job_id)
    return found


def test_request_job_and_batches_are_linked_and_sent_before_the_processes_end(stack: Stack, ledger: Ledger) -> None:
    """Nothing is sent before the end: the pause between two sends is longer than the test."""
    with receiving() as receiver:
        unset = dict.fromkeys(("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_TRACES_SAMPLER_ARG"), "")  # as the compose file has them
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "600000"} | unset
        api = stack.api(**environ)
        first = submit(stack, [f"{MARKER} number {n}" for n in range(5)], CLIENT)
        second = submit(stack, [f"RAISE {MARKER}", "a text"])
        unsampled = submit(stack, ["another"], UNSAMPLED)
        for state in (f"{MARKER} is none", f"vendor={MARKER}", f"a={MARKER},a={MARKER}"):
            httpx.get(f"{stack.base_url}/v1", headers={"traceparent": CLIENT, "tracestate": state})
        kept = [redis_client(stack.redis_url).hget(f"vector-api:job:{job['id']}", "traceparent") for job in (first, unsampled)]
        worker = stack.worker(name="traced", **environ)
        jobs = [ended(ledger, job["id"]) for job in (first, second, unsampled)]
        lines = [line for line in api.lines() if line["logger"] == "api.requests"]
        (name,) = (found.name for found in ledger.workers())
        assert worker.stop() == 0
        assert api.stop() == 0
    assert not receiver.spans("GET /healthz")
    assert len(receiver.spans("GET /v1")) == 3
    assert not any(MARKER.encode() in body for body in receiver.bodies)
    assert MARKER not in api.output() + worker.output()

    request = of_job(receiver.spans("POST /v1/jobs"), first["id"])
    assert (request.span.kind, request.resource["service.name"]) == (SERVER, "vector-api")
    assert request.span.trace_id.hex() == CLIENT.split("-")[1]
    assert request.span.parent_span_id.hex() == CLIENT.split("-")[2]
    assert request.attributes | {"http.request.method": "POST", "http.route": "/v1/jobs", "http.response.status_code": 202} == (
        request.attributes
    )
    assert request.attributes["vector_api.request_id"] == first["request_id"]
    assert [line["trace_id"] for line in lines if line["request_id"] == first["request_id"]] == [CLIENT.split("-")[1]]

    submissions = receiver.spans("submit job")
    submitted = of_job(submissions, first["id"])
    assert (submitted.span.kind, submitted.span.parent_span_id) == (PRODUCER, request.span.span_id)
    assert kept == [submitted.traceparent.encode(), None]
    assert len(submissions) == 2
    assert of_job(submissions, second["id"]).span.trace_id != submitted.span.trace_id

    (embed,) = receiver.spans("embed")
    assert (embed.span.kind, embed.resource["service.name"]) == (CONSUMER, "vector-api-worker")
    assert embed.links == {found.attributes["vector_api.job"]: found.traceparent for found in submissions}
    counts = {"queue": "cpu", "lane": "bulk", "worker": name, "jobs": 3, "shards": 3, "inputs": 8}
    assert embed.attributes == {f"vector_api.{key}": value for key, value in counts.items()}
    assert "batch failed" in {event.name for event in embed.span.events}
    tokenize, forward, commit = (receiver.spans(stage) for stage in ("tokenize", "forward", "commit"))
    for stage in (*tokenize, *forward, *commit):
        assert (stage.span.parent_span_id, stage.span.trace_id) == (embed.span.span_id, embed.span.trace_id)
        assert embed.span.start_time_unix_nano <= stage.span.start_time_unix_nano
        assert stage.span.start_time_unix_nano < stage.span.end_time_unix_nano <= embed.span.end_time_unix_nano
    assert [found.attributes["vector_api.inputs"] for found in tokenize] == [8]
    assert sum(found.attributes["vector_api.inputs"] for found in forward) == 7
    assert sum(found.attributes["vector_api.tokens"] for found in forward) == sum(job.tokens for job in jobs) - 4
    assert sum(found.attributes["vector_api.stored"] for found in commit) == 3


def test_receiver_that_does_not_answer_harms_nothing(stack: Stack, ledger: Ledger) -> None:
    """The API's takes connections and says nothing, the worker's is not there. A password in the address is in no log."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        api = stack.api(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://name:{MARKER}@127.0.0.1:{silent.getsockname()[1]}")
        nobody = f"http://name:{MARKER}@127.0.0.1:{free_port()}"
        worker = stack.worker(OTEL_EXPORTER_OTLP_ENDPOINT=nobody, OTEL_BSP_SCHEDULE_DELAY="50")
        job = submit(stack, ["a text"])
        assert ended(ledger, job["id"]).counts.done == 1
        wait_for(lambda: "Transient error" in worker.output(), what="a failed send")
        for process in (worker, api):
            begun = time.monotonic()
            assert process.stop() == 0, process.output()
            assert time.monotonic() - begun < 12, process.output()
            assert MARKER not in process.output()
            assert process.lines()


def test_nothing_is_traced_by_default(stack: Stack, ledger: Ledger) -> None:
    stack.api()
    job = submit(stack, ["a text"], CLIENT)
    assert redis_client(stack.redis_url).hget(f"vector-api:job:{job['id']}", "traceparent") is None


def submit_traced(ledger: Ledger, texts: list[str]) -> None:
    test_worker.submit(ledger, texts)
    ledger._redis.hset(ledger._key("job", "job"), "traceparent", CLIENT)


def errors_of(recorded: InMemorySpanExporter, name: str) -> list[Any]:
    """Of each span of this name the type of the error that ended it, or None."""
    found = [span for span in recorded.get_finished_spans() if span.name == name]
    assert all(span.status.is_ok != ("error.type" in (span.attributes or {})) for span in found)
    return [(span.attributes or {}).get("error.type") for span in found]


@pytest.mark.parametrize("call", ["divide", "commit", "look"])
def test_spans_of_a_drain_that_fails_end_with_the_error(
    ledger: Ledger, recorded: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(*args: object, **facts: object) -> Any:
        raise LedgerUnavailable("Redis is away")

    monkeypatch.setattr("worker.leases.LOOK_SECONDS", 0)
    monkeypatch.setattr(ledger, call, refuse)
    submit_traced(ledger, TEXTS)
    if call == "divide":  # two workers have died, the second with a shard alone
        for name in ("dead@test", "dead too@test"):
            ledger.claim("cpu", name, lease_seconds=60, max_bytes=1)
            leases_run_out(ledger)
    with pytest.raises(LedgerUnavailable):
        drain(Device(batch_size=8), ledger)
    wait_for(lambda: not tracing._embedding, what="the end of the spans")
    assert "LedgerUnavailable" in errors_of(recorded, "embed")
    assert set(errors_of(recorded, "commit")) <= ({"LedgerUnavailable"} if call == "commit" else {None})
    assert bool(errors_of(recorded, "commit")) >= (call == "commit")


def test_spans_of_a_drain_that_succeeds_have_no_error(ledger: Ledger, recorded: InMemorySpanExporter) -> None:
    submit_traced(ledger, TEXTS)
    drain(Device(batch_size=8), ledger)
    wait_for(lambda: not tracing._embedding, what="the end of the spans")
    for name in ("embed", "tokenize", "forward", "commit"):
        assert set(errors_of(recorded, name)) == {None}


def test_process_that_loses_its_device_sends_its_spans_and_names_the_shard(
    ledger: Ledger, recorded: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Lost(Device):
        def _take(self, step: str, number: int, batch: Sequence[Any]) -> None:
            raise DeviceLost("cuda:0 failed: device-side assert triggered")

    def end(code: int) -> Any:
        at_the_end.append((code, errors_of(recorded, "embed")))
        raise SystemExit(code)

    at_the_end: list[Any] = []
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(tracing, "_provider", TracerProvider(shutdown_on_exit=False))
    monkeypatch.setattr(tracing, "_exporter", recorded)
    submit_traced(ledger, ["a text"])
    with pytest.raises(SystemExit):
        drain(Lost(), ledger)
    assert at_the_end == [(4, ["DeviceLost"])]
    (critical,) = (record for record in caplog.records if record.levelname == "CRITICAL")
    assert (critical.__dict__["job"], critical.__dict__["shard"]) == ("job", "0+1")


def test_process_whose_engine_hangs_sends_its_spans(stack: Stack, ledger: Ledger) -> None:
    with receiving() as receiver:
        submit_traced(ledger, ["HANG for ever"])
        stack.worker(HANG_SECONDS="2", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, OTEL_BSP_SCHEDULE_DELAY="600000")
        hung = wait_for(lambda: receiver.spans("embed"), what="the spans of the process that hung")
    assert {span.attributes["error.type"] for span in hung} == {"EngineHung"}
    assert {tuple(span.links) for span in hung} == {("job",)}


def test_span_of_a_request_that_comes_second_names_the_job_of_the_first(
    redis_url: str, ledger: Ledger, recorded: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have looked for the key before either submits."""
    monkeypatch.setattr(ledger, "find_repeated", lambda *_: None)
    client = create_app(Settings.from_env({"REDIS_URL": redis_url}), ledger=ledger).test_client()
    headers = {"Idempotency-Key": "same"}
    first, second = (client.post("/v1/jobs", json={"inputs": ["a"]}, headers=headers).get_json()["id"] for _ in range(2))
    assert first == second
    submitted = [span for span in recorded.get_finished_spans() if span.name == "submit job"]
    assert [(span.attributes or {})["vector_api.job"] for span in submitted] == [first, first]


def test_answer_that_breaks_off_or_loses_its_client_says_so(stack: Stack, ledger: Ledger) -> None:
    with receiving() as receiver:
        api = stack.api(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, OTEL_BSP_SCHEDULE_DELAY="600000")
        lines = "\n".join(f'{{"id": "{"x" * 250}", "text": "{n}"}}' for n in range(21_000))  # more than sockets hold
        headers = {"Content-Type": "application/x-ndjson"}
        job_id = httpx.post(f"{stack.base_url}/v1/jobs", content=lines, headers=headers, timeout=60).json()["id"]
        Driver(ledger).work_all()
        url = f"{stack.base_url}/v1/jobs/{job_id}/result?format=ndjson"
        for request_id in ("left", "broken"):
            with httpx.stream("GET", url, headers={"x-request-id": request_id}) as answer:
                pieces = answer.iter_raw(1024)
                next(pieces)
                if request_id == "broken":
                    httpx.delete(f"{stack.base_url}/v1/jobs/{job_id}")
                    with pytest.raises(httpx.RemoteProtocolError):
                        list(pieces)

        def ended_lines() -> dict[str, dict]:
            return {line["request_id"]: line for line in api.lines() if line["logger"] == "api.requests"}

        found = wait_for(lambda: {"left", "broken"} <= ended_lines().keys() and ended_lines(), what="their lines")
        assert api.stop() == 0
    assert found["left"]["message"].endswith(", its client left before the end")
    assert "broke off after" in found["broken"]["message"]
    assert [(found[name]["level"], found[name]["job"]) for name in ("left", "broken")] == [("INFO", job_id), ("ERROR", job_id)]
    assert "JobNotFound, whose message may" in found["broken"]["traceback"]
    assert "never existed" not in api.output(), "the message of the exception"
    spans = {span.attributes["vector_api.request_id"]: span for span in receiver.spans("GET /v1/jobs/{job_id}/result")}
    assert [spans[name].attributes.get("error.type") for name in ("left", "broken")] == [None, "JobNotFound"]
    assert [[event.name for event in spans[name].span.events] for name in ("left", "broken")] == [["client left"], []]
