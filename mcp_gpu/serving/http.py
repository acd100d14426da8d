"""MCP over HTTP at `/mcp`, and the pages that Kubernetes and Prometheus read.

A client whose Accept names `text/event-stream` gets the full protocol. Any other, such as a bare
curl, gets plain JSON and needs no initialize. Nothing is kept between requests.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import anyio
import uvicorn
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types import JSONRPCNotification, JSONRPCRequest
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mcp_gpu.serving.access.gate import Gate
from mcp_gpu.serving.certificate import Certificate
from mcp_gpu.serving.endpoint import HttpEndpoint
from mcp_gpu.serving.pages import Page, Pages
from mcp_gpu.serving.protocol import KEEP_ALIVE_SECONDS, BoundedProtocol
from mcp_gpu.serving.security import RebindingGuard, refusal
from mcp_gpu.serving.stream import Stop, fault
from mcp_gpu.serving.tls import Handshakes, TlsConnection
from transports.framing import decode, encode

__all__ = ["serve_http"]

logger = logging.getLogger(__name__)

BODY_SECONDS = 30.0
"""How long a client may take to send a request's body."""

OPEN_PAGE = "/healthz"
"""Answered whatever the Host: load balancers ask by names of their own, and it tells nothing."""

LARGE_BODY_BYTES = 1 << 16
"""Longer than any honest request, but for some that paste a log."""

LARGE_BODIES = 32
"""Longer bodies that may be on their way at once: clients that never finish theirs would otherwise
hold `body_bytes` each, a GiB together. Others are served meanwhile."""


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
        app = _parting(
            _App(endpoint, gate, {**pages.paths, **gate.pages}, events, plain), pages.stop
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


WITHHELD = "mcp_gpu.withheld"
"""Where a request's scope says what its caller may not read, for `mcp_gpu.registry`."""


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


def _parting(app: ASGIApp, stop: Stop) -> ASGIApp:
    """Once the end is certain each answer is its connection's last, and says so: a client's next
    request then goes over a new one, to whoever serves on, and meets no end of this server."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        async def say(message: Message) -> None:
            if message["type"] == "http.response.start" and stop.announced.is_set():
                headers = [*message.get("headers", ()), (b"connection", b"close")]
                message = {**message, "headers": headers}
            await send(message)

        await app(scope, receive, say)

    return serve


def _over_tls(certificate: Certificate, handshakes: Handshakes) -> Any:
    """What makes uvicorn a protocol for each TCP connection."""

    def make(**arguments: Any) -> TlsConnection:
        above = partial(BoundedProtocol, **arguments)
        return TlsConnection(above, certificate.context, handshakes)

    return make


class _App:
    """The ASGI application."""

    def __init__(
        self,
        endpoint: HttpEndpoint,
        gate: Gate,
        pages: dict[str, Page],
        events: StreamableHTTPSessionManager,
        plain: StreamableHTTPSessionManager,
    ) -> None:
        self._body_bytes = endpoint.body_bytes
        self._gate = gate
        self._large_bodies = anyio.Semaphore(LARGE_BODIES)
        self._pages = pages
        self._events = events
        self._plain = plain
        guard = partial(
            RebindingGuard,
            allowed_hosts=endpoint.allowed_hosts,
            allowed_origins=endpoint.allowed_origins,
        )
        self._guarded_mcp, self._guarded_page = guard(self._mcp), guard(self._page)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == "/mcp":
            await self._guarded_mcp(scope, receive, send)
        elif path == OPEN_PAGE:
            await self._page(scope, receive, send)
        else:
            await self._guarded_page(scope, receive, send)

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        page = self._pages.get(scope["path"])
        if page is None:
            answer: Response = JSONResponse(
                {"error": "not found", "paths": ["/mcp", *self._pages]}, status_code=404
            )
        elif scope["method"] != "GET":
            answer = PlainTextResponse("GET only\n", status_code=405, headers={"Allow": "GET"})
        else:
            answer = page(scope)
        await answer(scope, receive, send)

    async def _mcp(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await self._admitted(scope, receive)
        if isinstance(body, Response):
            await body(scope, receive, send)
        elif _names_events(scope):
            await self._events.handle_request(scope, _replay(body, receive), send)
        else:
            await self._answer_plainly(scope, body, receive, send)

    async def _admitted(self, scope: Scope, receive: Receive) -> bytes | Response:
        """The one message that a caller who may send it has sent, or what to refuse it with."""
        caller = await self._gate.admit(scope)
        if isinstance(caller, Response):
            return caller
        if scope["method"] != "POST":
            return refusal(405, "MCP is spoken here with POST alone.", {"Allow": "POST"})
        body = await self._body(scope, receive)
        if isinstance(body, Response):
            return body
        try:
            message = decode(body)
        except ValueError:
            return _bad(body)
        if not isinstance(message, JSONRPCRequest | JSONRPCNotification):
            return _bad(body)  # an answer, and nothing was asked; or one that is a request as well
        # What goes on is what was judged: the SDK reads a body in its own way, and would run as a
        # request what was taken here for something else.
        withheld = await self._gate.permit(caller, message)
        if isinstance(withheld, Response):
            return withheld
        scope[WITHHELD] = withheld
        return encode(message)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | Response:
        """The request's body, or the refusal of one that is too long or too slow."""
        limit = self._body_bytes
        too_long = f"The body is longer than {limit} bytes."
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            return refusal(413, too_long)
        body = bytearray()
        with ExitStack() as held, anyio.move_on_after(BODY_SECONDS):
            large = False
            while True:
                message = await receive()
                body += message.get("body", b"")
                if len(body) > limit:
                    return refusal(413, too_long)
                if not message.get("more_body", False):
                    return bytes(body)
                if not large and len(body) > LARGE_BODY_BYTES:
                    try:
                        self._large_bodies.acquire_nowait()
                    except anyio.WouldBlock:
                        return refusal(503, "Too many long requests at once.", {"Retry-After": "1"})
                    large = True
                    held.callback(self._large_bodies.release)
        return refusal(408, f"The body took longer than {BODY_SECONDS:g} s.")

    async def _answer_plainly(
        self, scope: Scope, body: bytes, receive: Receive, send: Send
    ) -> None:
        """Answer with one JSON document, and stop working for a client that has gone
        (which the SDK does for event streams alone)."""
        headers = [pair for pair in scope["headers"] if pair[0] != b"accept"]
        scope = {**scope, "headers": [*headers, (b"accept", b"application/json")]}
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            await self._plain.handle_request(scope, _replay(body, _silence), send)
            tasks.cancel_scope.cancel()


def _bad(body: bytes) -> Response:
    """What a byte stream answers, too. The SDK would with kilobytes of pydantic's prose."""
    return Response(encode(fault(body)), status_code=400, media_type="application/json")


def _names_events(scope: Scope) -> bool:
    accept = ",".join(Headers(scope=scope).getlist("accept")).lower()
    return any(part.partition(";")[0].strip() == "text/event-stream" for part in accept.split(","))


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once more before it goes on."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


async def _silence() -> Message:
    await anyio.sleep_forever()
    raise AssertionError("unreachable")
