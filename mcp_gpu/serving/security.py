"""Which names and pages may call over HTTP: Host and Origin, against DNS rebinding.

A web page can make its visitor's browser call a server on localhost or in the visitor's network by
letting its own DNS name resolve there. Such a request carries that name as its Host and the page
as its Origin, so IP literals are harmless as Host, names must be known, and pages must be local.
The SDK's own check can allow neither all pod IPs nor a domain.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from mcp_types import INVALID_REQUEST, ErrorData, JSONRPCError
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from transports.hosts import is_address, is_loopback

__all__ = ["RebindingGuard", "refusal"]

logger = logging.getLogger(__name__)

TOLD_CHARS = 100
"""How much of a refused header is repeated."""

_HOST = re.compile(
    r"(?:\[([0-9a-f:.]+(?:%[a-z0-9._~%-]+)?)\]|([a-z0-9_.-]+))(?::[0-9]{0,5})?", re.ASCII
)
"""An address in brackets, or a name or an IPv4 address; then a port."""


class RebindingGuard:
    """ASGI middleware: 421 for an unknown Host, 403 for a foreign Origin."""

    def __init__(
        self, app: ASGIApp, *, allowed_hosts: Sequence[str], allowed_origins: Sequence[str]
    ) -> None:
        self._app = app
        self._hosts = tuple(host.lower().rstrip(".") for host in allowed_hosts)
        self._origins = frozenset(origin.lower().rstrip("/") for origin in allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        # Of several origins no one can be believed. Several hosts come no further than the parser.
        host, origin = headers.get("host", ""), ",".join(headers.getlist("origin"))
        if not self._knows(host):
            logger.info("refused Host %.100r", host)
            answer = refusal(
                421,
                f"Host {host[:TOLD_CHARS]!r} is not served here. Call by IP address, or add the "
                "name to --allowed-hosts (MCP_GPU_ALLOWED_HOSTS).",
            )
        elif "origin" in headers and not self._admits(origin):
            logger.info("refused Origin %.100r", origin)
            answer = refusal(
                403,
                f"Origin {origin[:TOLD_CHARS]!r} may not call. If that page is meant to, add it "
                "to --allowed-origins (MCP_GPU_ALLOWED_ORIGINS).",
            )
        else:
            await self._app(scope, receive, send)
            return
        await answer(scope, receive, send)

    def _knows(self, header: str) -> bool:
        host = _hostname(header)
        if not host:
            return False
        local = host == "localhost" or is_address(host)
        return local or any(_matches(host, allowed) for allowed in self._hosts)

    def _admits(self, header: str) -> bool:
        origin = header.lower()
        if origin in self._origins or "*" in self._origins:
            return True
        scheme, _, rest = origin.partition("://")
        if scheme not in ("http", "https"):
            return False
        return is_loopback(_hostname(rest))


def refusal(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """An HTTP error whose body MCP clients know how to show."""
    error = JSONRPCError(
        jsonrpc="2.0", id=None, error=ErrorData(code=INVALID_REQUEST, message=message)
    )
    body = error.model_dump_json(by_alias=True, exclude_unset=True)
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def _hostname(header: str) -> str:
    """The Host header without its port, brackets and final dot; empty if it is malformed.

    Read strictly, not as the authority of a URL: a parser that sees a user's name before the host,
    or a path behind it, would take `evil.example@localhost` for localhost.
    """
    found = _HOST.fullmatch(header.lower())
    if found is None:
        return ""
    address, name = found.groups()
    if address is not None:
        return address if ":" in address and is_address(address) else ""
    return name.removesuffix(".")


def _matches(host: str, allowed: str) -> bool:
    if allowed.startswith("*."):
        return host.endswith(allowed[1:])
    return allowed in (host, "*")
