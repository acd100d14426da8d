"""What every server tells of itself: its calls, what it turned away, its certificate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

from mcp_gpu.telemetry.calls import Calls
from mcp_gpu.telemetry.metrics.family import Family, Metric
from transports.base import Identity

__all__ = ["METRICS", "Ending", "Limited", "families"]

BUILD: Final = Metric(
    "mcp_gpu_build_info",
    "info",
    "Always 1: which role of which version runs here, and whether its GPUs are simulated.",
    ("name", "version", "simulated"),
)
CALLS: Final = Metric(
    "mcp_gpu_tool_calls_total",
    "counter",
    "Calls of tools that have ended. bad_arguments: the client's fault; tool_error: no answer can "
    "be had, and the client was told why; too_large: it was asked for too much at once; "
    "internal_error: a defect, with a trace in the log; refused: a resource that there is not.",
    ("tool", "outcome"),
)
CALL_SECONDS: Final = Metric(
    "mcp_gpu_tool_call_duration_seconds",
    "histogram",
    "How long calls of tools took, from their arguments to their answer, whatever came of them.",
    ("tool",),
)
RUNNING: Final = Metric(
    "mcp_gpu_tool_calls_running", "gauge", "Calls of tools under way.", ("tool",)
)
REQUESTS_RUNNING: Final = Metric(
    "mcp_gpu_requests_running", "gauge", "Requests that the limits have let in and that run."
)
REQUESTS_WAITING: Final = Metric(
    "mcp_gpu_requests_waiting", "gauge", "Requests that wait for their turn: the queue's depth."
)
SUBSCRIPTIONS: Final = Metric(
    "mcp_gpu_subscriptions_open", "gauge", "Streams that tell of updates, which last."
)
SHED: Final = Metric(
    "mcp_gpu_requests_shed_total",
    "counter",
    "Requests that were turned away at a limit, by which; the client was told to come again.",
    ("limit",),
)
CERTIFICATE: Final = Metric(
    "mcp_gpu_tls_certificate_expiry_timestamp_seconds",
    "gauge",
    "When the first certificate of the chain served here ends, in Unix time. Only with HTTPS.",
)

METRICS: Final = (
    BUILD,
    CALLS,
    CALL_SECONDS,
    RUNNING,
    REQUESTS_RUNNING,
    REQUESTS_WAITING,
    SUBSCRIPTIONS,
    SHED,
    CERTIFICATE,
)


class Limited(Protocol):
    """What keeps a server from taking more than it can."""

    @property
    def running(self) -> int:
        """Requests let in."""

    @property
    def waiting(self) -> int:
        """Those in the queue."""

    @property
    def subscriptions(self) -> int:
        """Open `subscriptions/listen` streams, which are not among those."""

    @property
    def shed(self) -> Mapping[Any, int]:
        """Those turned away, by the limit that they met: a short closed list."""


class Ending(Protocol):
    """A certificate."""

    @property
    def ends_at(self) -> float:
        """Unix seconds."""


def families(
    identity: Identity, calls: Calls, *, limits: Limited | None, certificate: Ending | None
) -> Iterator[Family]:
    """Of one server, now."""
    simulated = str(identity.simulated).lower()
    yield BUILD.series({(identity.name, identity.version, simulated): 1})
    yield CALLS.series(calls.counts)
    yield CALL_SECONDS.by_label(calls.seconds)
    yield RUNNING.by_label(calls.running)
    if limits is not None:
        yield REQUESTS_RUNNING.is_now(limits.running)
        yield REQUESTS_WAITING.is_now(limits.waiting)
        yield SUBSCRIPTIONS.is_now(limits.subscriptions)
        yield SHED.by_label(limits.shed)
    if certificate is not None:
        yield CERTIFICATE.is_now(certificate.ends_at)
