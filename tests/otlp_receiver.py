"""A real receiver of OTLP over HTTP, which keeps what comes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse


@dataclass(frozen=True)
class Received:
    """A span as it came, with what its process says of itself."""

    span: Any
    resource: dict[str, Any]

    @property
    def attributes(self) -> dict[str, Any]:
        return _plain(self.span.attributes)

    @property
    def traceparent(self) -> str:
        return f"00-{self.span.trace_id.hex()}-{self.span.span_id.hex()}-01"

    @property
    def links(self) -> dict[str, str]:
        """Traceparents by the job that each link names."""
        return {
            _plain(link.attributes)["vector_api.job"]: f"00-{link.trace_id.hex()}-{link.span_id.hex()}-01"
            for link in self.span.links
        }


class OtlpReceiver:
    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.url = ""

    def spans(self, name: str) -> list[Received]:
        return [
            Received(span, _plain(group.resource.attributes))
            for body in list(self.bodies)
            for group in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in group.scope_spans
            for span in scope.spans
            if span.name == name
        ]


def _plain(attributes: Any) -> dict[str, Any]:
    return {found.key: getattr(found.value, found.value.WhichOneof("value")) for found in attributes}


@contextmanager
def receiving() -> Iterator[OtlpReceiver]:
    found = OtlpReceiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert self.path == "/v1/traces"
            found.bodies.append(body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield found
        server.shutdown()
