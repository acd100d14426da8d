"""Spans of our own, beside those that the MCP SDK makes of each request it sends and serves.

Through OpenTelemetry's API alone, which does next to nothing until somebody sets up its SDK
(`mcp_gpu.telemetry.export`, or whoever embeds this). Trace context travels in `_meta`, which the
MCP SDK writes and reads, so every path to an agent carries it alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio
from opentelemetry import trace
from opentelemetry.trace import StatusCode

from transports.errors import TransportError

__all__ = ["PREFIX", "note", "span", "trace_id"]

PREFIX = "mcp_gpu."
"""Of our attributes' names."""

_tracer = trace.get_tracer("mcp_gpu")

Value = str | bool | int | float


@contextmanager
def span(name: str, **attributes: Value) -> Iterator[None]:
    """A part of what is under way; of a call, where one is. What ends it by an exception is told by
    one word: the texts of some are a peer's.

    Args:
        attributes: without `PREFIX`.
    """
    with _tracer.start_as_current_span(
        name,
        attributes={PREFIX + key: value for key, value in attributes.items()},
        record_exception=False,
        set_status_on_exception=False,
    ) as made:
        try:
            yield
        except anyio.get_cancelled_exc_class():
            made.set_attribute(PREFIX + "outcome", "cancelled")
            raise
        except Exception as error:
            word = error.reason if isinstance(error, TransportError) else type(error).__name__
            made.set_attributes({PREFIX + "outcome": word, "error.type": word})
            made.set_status(StatusCode.ERROR)
            raise


def note(**attributes: Value) -> None:
    """Say more of the span that is under way.

    Args:
        attributes: without `PREFIX`.
    """
    under_way = trace.get_current_span()
    if under_way.is_recording():
        under_way.set_attributes({PREFIX + key: value for key, value in attributes.items()})


def trace_id() -> str:
    """Of the trace that what is under way is part of, recorded here or not; empty for none."""
    found = trace.get_current_span().get_span_context()
    return trace.format_trace_id(found.trace_id) if found.is_valid else ""
