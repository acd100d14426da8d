"""Sends this process's spans to a collector: OpenTelemetry's SDK, as its own variables set it up.

Imported when traces are wanted: the SDK and its exporter are the extra `mcp-gpu[otel]`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

__all__ = ["exporting"]

END_SECONDS = 1.0
"""How long the end waits for the last spans to be taken."""


@contextmanager
def exporting(service: str, resource: Mapping[str, str]) -> Iterator[None]:
    """Send spans meanwhile. Once per process, whose tracer provider this sets.

    Args:
        service: `service.name`, unless a variable says otherwise.
        resource: more attributes of what this process is.
    """
    known = Resource.create({"service.name": service, **resource})
    # Variables win: whoever sets them knows what this is called where the traces go.
    known = known.merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=known, shutdown_on_exit=False)
    provider.sampler = _Calls(provider.sampler)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        # Which may wait half a minute for a collector that does not answer.
        end = threading.Thread(target=provider.shutdown, name="traces", daemon=True)
        end.start()
        end.join(END_SECONDS)


class _Calls(Sampler):
    """What begins with a request that is served here. What this process does of its own accord,
    such as to look again at paths that had failed, would be a trace of a span or two each time."""

    def __init__(self, chosen: Sampler) -> None:
        self._chosen = chosen

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        parent = trace.get_current_span(parent_context).get_span_context()
        if not parent.is_valid and kind is not SpanKind.SERVER:
            return SamplingResult(Decision.DROP)
        return self._chosen.should_sample(
            parent_context, trace_id, name, kind, attributes, links, trace_state
        )

    def get_description(self) -> str:
        return f"Calls({self._chosen.get_description()})"
