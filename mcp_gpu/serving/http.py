"""MCP over HTTP: uvicorn on the listeners' sockets, in plain or over TLS, until the stop."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import anyio
import uvicorn
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

from mcp_gpu.serving.access.gate import Gate
from mcp_gpu.serving.app import App, parting
from mcp_gpu.serving.certificate import Certificate
from mcp_gpu.serving.endpoint import HttpEndpoint
from mcp_gpu.serving.pages import Pages
from mcp_gpu.serving.protocol import KEEP_ALIVE_SECONDS, BoundedProtocol
from mcp_gpu.serving.stream import Stop
from mcp_gpu.serving.tls import Handshakes, TlsConnection

__all__ = ["serve_http"]


async def serve_http(
    server: Server[Any],
    endpoint: HttpEndpoint,
    sockets: list[socket.socket],
    *,
    gate: Gate,
    certificate: Certificate | None,
    pages: Pages,
    drain_seconds: int,
) -> None:
    """Serve until the stop is requested and what is in flight has been answered.

    Args:
        gate: lets callers in; entered and left here.
        certificate: serves HTTPS; None for plain HTTP.
        pages: what is answered beside `/mcp`; holds the stop too.
        drain_seconds: how long calls in flight may still take.
    """
    async with gate, _session_managers(server, endpoint.body_bytes) as (events, plain):
        app = parting(
            App(
                endpoint,
                gate,
                pages.calls,
                pages.limits,
                {**pages.paths, **gate.pages},
                events,
                plain,
            ),
            pages.stop,
        )
        handshakes = Handshakes()
        config = uvicorn.Config(
            app,
            http=BoundedProtocol if certificate is None else _over_tls(certificate, handshakes),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=drain_seconds,
        )
        http = _HttpServer(config, pages.stop, handshakes)
        async with anyio.create_task_group() as tasks:

            async def end() -> None:
                await pages.stop.requested.wait()
                http.should_exit = True

            tasks.start_soon(end)
            if certificate is not None:
                tasks.start_soon(certificate.watch)
            await http.serve(sockets)
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def _session_managers(
    server: Server[Any], body_bytes: int
) -> AsyncIterator[tuple[StreamableHTTPSessionManager, StreamableHTTPSessionManager]]:
    events = StreamableHTTPSessionManager(server, stateless=True, max_request_body_size=body_bytes)
    plain = StreamableHTTPSessionManager(
        server, stateless=True, json_response=True, max_request_body_size=body_bytes
    )
    async with events.run(), plain.run():
        yield events, plain


class _HttpServer(uvicorn.Server):
    """uvicorn that leaves signals to the process and ends subscriptions before it waits."""

    def __init__(self, config: uvicorn.Config, stop: Stop, handshakes: Handshakes) -> None:
        super().__init__(config)
        self._stop = stop
        self._handshakes = handshakes

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # No await between this and uvicorn's marking of every connection as its last request:
        # no client can open another subscription in between.
        self._stop.end_subscriptions()
        self._handshakes.end_all()
        await super().shutdown(sockets)


def _over_tls(certificate: Certificate, handshakes: Handshakes) -> Any:
    """What makes uvicorn a protocol for each TCP connection."""

    def make(**arguments: Any) -> TlsConnection:
        above = partial(BoundedProtocol, **arguments)
        return TlsConnection(above, certificate.context, handshakes)

    return make
