"""What Kubernetes, Prometheus and a gateway's probe read over HTTP besides MCP."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Scope

from mcp_gpu.serving.limits import Limits
from mcp_gpu.serving.stream import Stop
from mcp_gpu.telemetry.calls import Calls
from transports.base import PAD_CHARS, Identity

__all__ = ["Page", "Pages", "Readiness"]

PAD_CHARS_LIMIT = 4 * PAD_CHARS
"""Most padding that `/version` answers with: more than any probe asks for."""

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Page = Callable[[Scope], Response]


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether a load balancer should send calls here, and why."""

    ready: bool
    detail: Mapping[str, Any] = field(default_factory=dict)
    """States and counts, shown at `/readyz` to whoever asks; ready for JSON."""
    words: Mapping[str, str | None] = field(default_factory=dict)
    """Names and reasons, shown beside them where callers of tools need no token either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """The pages of one process."""

    identity: Callable[[], Identity]
    calls: Calls
    limits: Limits
    readiness: Callable[[], Readiness]
    stop: Stop
    tells_all: bool
    """Whether whoever asks may know all."""
    started_at: float = field(default_factory=time.monotonic)

    @property
    def paths(self) -> dict[str, Page]:
        """Each page by its path."""
        return {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/version": self._version,
            "/metrics": self._metrics,
        }

    def _healthz(self, scope: Scope) -> Response:
        return JSONResponse({"status": "healthy"})

    def _readyz(self, scope: Scope) -> Response:
        readiness = self.readiness()
        stopping = self.stop.announced.is_set()
        ready = readiness.ready and not stopping
        status = "stopping" if stopping else "ready" if ready else "not_ready"
        told = {"status": status, **readiness.detail}
        if self.tells_all:
            told |= readiness.words
        return JSONResponse(told, status_code=200 if ready else 503)

    def _version(self, scope: Scope) -> Response:
        document = self.identity().to_wire()
        pad_chars = _number(scope, "pad")
        if pad_chars:
            document["padding"] = "x" * pad_chars
        return JSONResponse(document)

    def _metrics(self, scope: Scope) -> Response:
        return PlainTextResponse("\n".join(self._samples()) + "\n", media_type=METRICS_TYPE)

    def _samples(self) -> Iterator[str]:
        """By hand: a client library would be one more dependency and import for nine lines."""
        identity = self.identity()
        yield "# HELP mcp_gpu_build_info What runs here."
        yield "# TYPE mcp_gpu_build_info gauge"
        name, version = _label(identity.name), _label(identity.version)
        yield f"mcp_gpu_build_info{{name={name},version={version}}} 1"
        yield "# HELP mcp_gpu_uptime_seconds Time since this process began to serve."
        yield "# TYPE mcp_gpu_uptime_seconds gauge"
        yield f"mcp_gpu_uptime_seconds {time.monotonic() - self.started_at:.3f}"
        yield "# HELP mcp_gpu_tool_calls_total Tool calls ended, by outcome."
        yield "# TYPE mcp_gpu_tool_calls_total counter"
        for (tool, outcome), count in sorted(self.calls.counts.items()):
            labels = f"tool={_label(tool)},outcome={_label(outcome)}"
            yield f"mcp_gpu_tool_calls_total{{{labels}}} {count}"


def _label(value: str) -> str:
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'


def _number(scope: Scope, name: str) -> int:
    """A number of the query string, 0 where there is none: these pages never fail."""
    query = scope["query_string"].decode("latin-1")
    for key, value in (pair.partition("=")[::2] for pair in query.split("&")):
        if key == name and value.isascii() and value.isdecimal():
            return min(int(value[:9]), PAD_CHARS_LIMIT)
    return 0
