"""An OpenTelemetry collector that keeps what it is sent: OTLP over HTTP, on loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

__all__ = ["Collector", "Span", "collecting"]


@dataclass(frozen=True, kw_only=True)
class Span:
    """One span, and the process that sent it."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]
    failed: bool
    resource: dict[str, Any]


@dataclass
class Collector:
    """What has come."""

    url: str
    spans: list[Span] = field(default_factory=list)

    def trace(self, trace: str) -> list[Span]:
        """All spans of one trace so far."""
        return [span for span in self.spans if span.trace == trace]

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which a process sends its spans here, and soon."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.url,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "NO_PROXY": "127.0.0.1",
        }


def lineage(span: Span, spans: Sequence[Span]) -> list[str]:
    """The span's name and those above it, the first one last, each with its service."""
    above = next((each for each in spans if each.id == span.parent), None)
    return [f"{span.service}: {span.name}", *([] if above is None else lineage(above, spans))]


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector, on a thread of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/traces"
            collector.spans.extend(_spans(ExportTraceServiceRequest.FromString(body)))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def _spans(request: ExportTraceServiceRequest) -> Iterator[Span]:
    for sent in request.resource_spans:
        resource = _attributes(sent.resource.attributes)
        for scope in sent.scope_spans:
            for span in scope.spans:
                yield Span(
                    service=resource["service.name"],
                    name=span.name,
                    trace=span.trace_id.hex(),
                    id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    attributes=_attributes(span.attributes),
                    failed=span.status.code == span.status.STATUS_CODE_ERROR,
                    resource=resource,
                )


def _attributes(pairs: Any) -> dict[str, Any]:
    found = {}
    for pair in pairs:
        kind = pair.value.WhichOneof("value")
        found[pair.key] = getattr(pair.value, kind)
    return found
