"""The door to OpenTelemetry.

Traces are on where OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set. Where they are not, nothing is
imported, and every span is `NOTHING`. OpenTelemetry's own variables do all else; it reads them itself.

    trace of a request                                    a trace of its own
      POST /v1/jobs                  server  (API)          embed      consumer  (worker): shards that were claimed together
        submit job                   producer    ◀──link──    tokenize, forward (a batch each), commit

The traceparent of `submit job` is kept in the job's record. `embed` has a link to each traced job whose shards it holds, and is
there when it has one: whether to trace is decided where a request comes in. Spans hold ids, counts and names, never texts.
"""

import importlib.util
import re
import threading
import time
from collections.abc import Iterable, Mapping
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import unquote, urlsplit

from core.errors import InvalidSetting

if TYPE_CHECKING:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
HEADERS = ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")

HEADER = re.compile(r"[!#-'*+\-.0-9A-Z^-z|~]+[ \t]*=[ !#-+\--:<-\[\]-~\t]*")
"""What OpenTelemetry takes for a header; anything else it logs in full."""

LEAST = {
    "OTEL_BSP_SCHEDULE_DELAY": 1,
    "OTEL_BSP_MAX_QUEUE_SIZE": 1,
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": 1,
    "OTEL_BSP_EXPORT_TIMEOUT": 0,
    "OTEL_ATTRIBUTE_COUNT_LIMIT": 0,
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": 0,
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": 0,
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": 0,
    "OTEL_SPAN_EVENT_COUNT_LIMIT": 0,
    "OTEL_SPAN_LINK_COUNT_LIMIT": 0,
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT": 0,
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT": 0,
}
"""The numbers that OpenTelemetry reads. Of a bad one it says, if anything, only when it makes the first use of it."""

QUEUED, SENT_AT_ONCE = "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"
SPANS_QUEUED, SPANS_SENT_AT_ONCE = 2048, 512
"""Their defaults."""

PACKAGES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")

MOST_LINKS = 128
"""OpenTelemetry's own limit. A claim may hold 1000 shards; that many links would cost more than they tell."""

FLUSH_SECONDS = 3.0
"""How long a process that ends waits until its last spans are sent."""

Kind = Literal["server", "producer", "consumer", "internal"]


class Span:
    """A span, or nothing. Our attributes are named without their prefix, `vector_api.`; those that are None are left out."""

    def __init__(self, span: "OtelSpan | None" = None) -> None:
        self._span = span

    @property
    def traceparent(self) -> str:
        """As W3C's header has it; empty when the span is not recorded."""
        context = self._span and self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-01" if context and context.trace_flags.sampled else ""

    @property
    def trace_id(self) -> str:
        return self.traceparent[3:35]

    def begin(self, name: str, kind: Kind = "internal", /, **attributes: Any) -> "Span":
        """A span within this one."""
        return NOTHING if self._span is None else _begin(name, kind, attributes, parent=self._span)

    def record(self, name: str, seconds: float, error_type: str = "", /, **attributes: Any) -> None:
        """What took so long until now, as a span within this one, and the type of the error that ended it, if one did."""
        if self._span is not None:
            _begin(name, "internal", attributes, parent=self._span, begun_ns=_ago(seconds)).end(error_type)

    def note(self, name: str, /, **attributes: Any) -> None:
        """Something that happened just now."""
        if self._span is not None:
            self._span.add_event(name, _named(attributes))

    def set(self, **attributes: Any) -> None:
        if self._span is not None:
            self._span.set_attributes(_named(attributes))

    def fail(self, error_type: str) -> None:
        """An error of this type ends it, or part of it. Not told is its message, which may quote what it must not."""
        if self._span is not None:
            from opentelemetry.trace import StatusCode

            self._span.set_status(StatusCode.ERROR)
            self._span.set_attribute("error.type", error_type)

    def end(self, error_type: str = "") -> None:
        """With the type of the error that ended it, if one did."""
        if self._span is None:
            return
        if error_type:
            self.fail(error_type)
        _embedding.discard(self)
        self._span.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end(kind.__name__ if kind else "")


NOTHING = Span()

_provider: "TracerProvider | None" = None
_exporter: "OTLPSpanExporter | None" = None
_tracer: "Tracer | None" = None
_embedding: set[Span] = set()
"""Spans `embed` that have not ended."""


def require(environ: Mapping[str, str]) -> bool:
    """Whether traces are on.

    Raises:
        InvalidSetting: they are, and cannot be sent. It shows nothing that may be a password or a key.
    """
    variable = _given(ENDPOINTS, environ)
    if variable is None or environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if not _is_endpoint(environ[variable].strip()):
        message = f"{variable} must be http://host:port or https://host:port, with a path if need be, and no query"
        raise InvalidSetting(message, param=variable)
    protocol = _given(PROTOCOLS, environ)
    if protocol and environ[protocol].strip() != "http/protobuf":
        raise InvalidSetting(f"{protocol} must be http/protobuf, got {environ[protocol]!r}", param=protocol)
    for name in HEADERS:
        _require_headers(name, environ.get(name, ""))
    _require_numbers(environ)
    if not all(map(_is_installed, PACKAGES)):
        raise InvalidSetting(f"{variable} needs OpenTelemetry: pip install -r requirements-tracing.txt", param=variable)
    return True


def _given(names: Iterable[str], environ: Mapping[str, str]) -> str | None:
    return next((name for name in names if environ.get(name, "").strip()), None)


def _is_endpoint(url: str) -> bool:
    """A query may hold a key, and is logged with each send that fails."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not ({"?", "#"} & set(url))
    except ValueError:
        return False


def _require_headers(variable: str, value: str) -> None:
    for header in filter(None, (part.strip() for part in value.split(","))):
        if not HEADER.fullmatch(header) or not unquote(header).isprintable():
            message = f"{variable} must be name=value, with commas between several and values URL-encoded, as in key=a%20b"
            raise InvalidSetting(message, param=variable)


def _require_numbers(environ: Mapping[str, str]) -> None:
    numbers = dict[str, int]()
    for name, least in LEAST.items():
        if not (value := environ.get(name, "").strip()):
            continue
        if not re.fullmatch("[0-9]{1,9}", value) or int(value) < least:
            raise InvalidSetting(f"{name} must be a whole number from {least} on, got {value[:20]!r}", param=name)
        numbers[name] = int(value)
    queued = numbers.get(QUEUED, SPANS_QUEUED)
    if numbers.get(SENT_AT_ONCE, SPANS_SENT_AT_ONCE) > queued:
        raise InvalidSetting(f"{SENT_AT_ONCE} must be at most {QUEUED}, which is {queued}", param=SENT_AT_ONCE)


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def start(environ: Mapping[str, str], service: str, instance: str, *, follows: bool = False) -> None:
    """Send spans from now on, if traces are on. To be called in the process that has them: what sends them is a thread.

    Args:
        service: the service's name, unless OTEL_SERVICE_NAME has another.
        instance: which one of the service's processes it is.
        follows: every span is recorded; somebody else has decided that it should. Otherwise OTEL_TRACES_SAMPLER does.
    """
    global _provider, _exporter, _tracer
    if not require(environ):
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    ours = Resource({"service.name": service, "service.instance.id": instance})
    _exporter = OTLPSpanExporter()
    _provider = TracerProvider(
        resource=Resource.create().merge(ours).merge(OTELResourceDetector().detect()),
        sampler=ALWAYS_ON if follows else None,
        shutdown_on_exit=False,  # it would wait for 30 s
    )
    _provider.add_span_processor(BatchSpanProcessor(_exporter))
    _tracer = _provider.get_tracer("vector-api")


def stop(error_type: str = "") -> None:
    """Send what is left, for `FLUSH_SECONDS` at most; nothing is sent afterwards.

    Args:
        error_type: of the error that ends this process in the middle of its work, if one does: it ends the spans of that work.
    """
    global _tracer
    if _tracer is None or _provider is None or _exporter is None:
        return
    if error_type:
        for span in tuple(_embedding):
            span.end(error_type)
    _tracer = None
    sending = threading.Thread(target=_provider.shutdown, name="last spans", daemon=True)
    sending.start()
    sending.join(FLUSH_SECONDS)
    if sending.is_alive():
        _exporter.shutdown()  # type: ignore[no-untyped-call]  # ends its pauses between tries


def is_on() -> bool:
    return _tracer is not None


def begin_request(name: str, headers: Mapping[str, str], /, **attributes: Any) -> Span:
    """The span of a request, within that of its client if it sent one.

    A `tracestate` is left alone: whoever asks could write into our log with one that OpenTelemetry finds fault with.
    """
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    sent = {"traceparent": headers["traceparent"]} if "traceparent" in headers else {}
    return _begin(name, "server", attributes, context=TraceContextTextMapPropagator().extract(sent))


def begin_embedding(traced: Mapping[str, str], seconds: float, /, **attributes: Any) -> Span:
    """The span of shards that were claimed together, begun so many seconds ago; nothing if none of their jobs is traced.

    Args:
        traced: the traceparent of each traced job, by its id.
    """
    if not traced:
        return NOTHING
    linked = dict(islice(traced.items(), MOST_LINKS))
    told = attributes | {"links_left_out": len(traced) - len(linked) or None}
    span = _begin("embed", "consumer", told, linked=linked, begun_ns=_ago(seconds))
    _embedding.add(span)
    return span


def _begin(
    name: str,
    kind: Kind,
    attributes: Mapping[str, Any],
    *,
    parent: "OtelSpan | None" = None,
    context: Any = None,
    linked: Mapping[str, str] | None = None,
    begun_ns: int | None = None,
) -> Span:
    tracer = _tracer
    if tracer is None:
        return NOTHING
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags, set_span_in_context

    def context_of(traceparent: str) -> SpanContext:
        """Of one that `Span.traceparent` has written: nothing else comes here."""
        flags = TraceFlags(TraceFlags.SAMPLED)
        return SpanContext(int(traceparent[3:35], 16), int(traceparent[36:52], 16), is_remote=True, trace_flags=flags)

    links = [Link(context_of(traceparent), _named({"job": job_id})) for job_id, traceparent in (linked or {}).items()]
    if parent is not None:
        context = set_span_in_context(parent, Context())
    found = tracer.start_span(
        name,
        context=Context() if context is None else context,
        kind=SpanKind[kind.upper()],
        attributes=_named(attributes),
        links=links,
        start_time=begun_ns,
    )
    return Span(found)


def _named(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name if "." in name else f"vector_api.{name}": value for name, value in attributes.items() if value not in (None, "")}


def _ago(seconds: float) -> int:
    return time.time_ns() - int(seconds * 1e9)
