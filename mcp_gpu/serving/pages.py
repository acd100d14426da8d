"""What Kubernetes, Prometheus and a gateway's probe read over HTTP besides MCP."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from mcp_gpu.serving.limits import Limits
from mcp_gpu.serving.stream import Stop
from mcp_gpu.telemetry.calls import Calls
from transports.base import PAD_CHARS, Identity

if TYPE_CHECKING:
    from mcp_gpu.telemetry.metrics.family import Family
    from mcp_gpu.telemetry.metrics.server import Ending

__all__ = ["Page", "Pages", "Readiness"]

PAD_CHARS_LIMIT = 4 * PAD_CHARS
"""Most padding that `/version` answers with: more than any probe asks for."""

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
    metrics: Callable[[], Iterable[Family]] = tuple
    """What the role tells beside what every server does; asked at each scrape."""
    certificate: Ending | None = None

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
        # The first scrape pays for the library that writes the page, and not the start.
        from mcp_gpu.telemetry.metrics import server
        from mcp_gpu.telemetry.metrics.exposition import written

        own = server.families(
            self.identity(), self.calls, limits=self.limits, certificate=self.certificate
        )
        accept = ",".join(Headers(scope=scope).getlist("accept"))
        page, media_type = written(chain(own, self.metrics()), accept)
        return Response(page, media_type=media_type)


def _number(scope: Scope, name: str) -> int:
    """A number of the query string, 0 where there is none: these pages never fail."""
    query = scope["query_string"].decode("latin-1")
    for key, value in (pair.partition("=")[::2] for pair in query.split("&")):
        if key == name and value.isascii() and value.isdecimal():
            return min(int(value[:9]), PAD_CHARS_LIMIT)
    return 0
