"""What is answered over HTTP: MCP at `/mcp`, and the pages that Kubernetes and Prometheus read.

A client whose Accept names `text/event-stream` gets the full protocol. Any other, such as a bare
curl, gets plain JSON and needs no initialize. Nothing is kept between requests.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial

import anyio
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types import JSONRPCError, JSONRPCMessage, JSONRPCNotification, JSONRPCRequest
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mcp_gpu.serving.access.gate import Gate
from mcp_gpu.serving.endpoint import HttpEndpoint
from mcp_gpu.serving.limits import Limits, Shed, Visit, name_of
from mcp_gpu.serving.message import Malformed, fault, read
from mcp_gpu.serving.pages import Page
from mcp_gpu.serving.protocol import BoundedProtocol
from mcp_gpu.serving.security import RebindingGuard, refusal
from mcp_gpu.serving.stream import Stop
from mcp_gpu.telemetry.calls import Calls, Refused
from mcp_gpu.telemetry.origin import ORIGIN, Origin
from transports.framing import encode

__all__ = ["App", "parting"]

logger = logging.getLogger(__name__)

BODY_SECONDS = 30.0
"""How long a client may take to send a request's body."""

REFUSALS = frozenset({401, 403, 421, 429, 503})
"""What a caller is told who may not call, or not now."""

OPEN_PAGE = "/healthz"
"""Answered whatever the Host: load balancers ask by names of their own, and it tells nothing."""

LARGE_BODY_BYTES = 1 << 16
"""Longer than any honest request, but for some that paste a log."""

LARGE_BODIES = 32
"""Longer bodies that may be on their way at once: clients that never finish theirs would otherwise
hold `body_bytes` each, a GiB together. Others are served meanwhile."""

WITHHELD = "mcp_gpu.withheld"
"""Where a request's scope says what its caller may not read, for `mcp_gpu.registry`."""

QUIET_SECONDS = 60.0
"""How often the log repeats that requests are sent away."""


def parting(app: ASGIApp, stop: Stop) -> ASGIApp:
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


class App:
    """The ASGI application."""

    def __init__(
        self,
        endpoint: HttpEndpoint,
        gate: Gate,
        calls: Calls,
        limits: Limits,
        pages: dict[str, Page],
        events: StreamableHTTPSessionManager,
        plain: StreamableHTTPSessionManager,
    ) -> None:
        self._body_bytes = endpoint.body_bytes
        self._gate = gate
        self._calls = calls
        self._limits = limits
        self._silent_until = 0.0
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
            origin = Origin(listener="http", peer=_peer(scope))
            before = ORIGIN.set(origin)
            try:
                await self._guarded_mcp(scope, receive, self._telling(origin, send))
            finally:
                ORIGIN.reset(before)
        elif path == OPEN_PAGE:
            await self._page(scope, receive, send)
        else:
            await self._guarded_page(scope, receive, send)

    def _telling(self, origin: Origin, send: Send) -> Send:
        """A `send` that tells of callers who are turned away, whoever does it."""

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in REFUSALS:
                self._calls.refuse(Refused(origin=origin, status=message["status"]))
            await send(message)

        return tell

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
        # Who has left an answer unread is asked nothing for: no more is made than he reads.
        await _connection(scope).until_read()
        refused = await self._serve(scope, receive, send)
        if refused is not None:
            await refused(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> Response | None:
        """Answer the one message that a caller has sent, or give what to refuse it with."""
        caller = await self._gate.admit(scope)
        if isinstance(caller, Response):
            return caller
        origin = ORIGIN.get()
        if origin is not None and caller is not None:
            origin.token, origin.subject = caller.kind, caller.name
        if scope["method"] != "POST":
            return refusal(405, "MCP is spoken here with POST alone.", {"Allow": "POST"})
        name = name_of(caller, (scope["client"] or ("",))[0])
        visit = self._limits.admit(name)
        if isinstance(visit, Shed):
            return self._sent_away(name, visit)
        with visit:
            message = await self._message(scope, receive)
            if isinstance(message, Response):
                return message
            if origin is not None:
                origin.asked = _asked(message)
            withheld = await self._gate.permit(caller, message)
            if isinstance(withheld, Response):
                return withheld
            scope[WITHHELD] = withheld
            shed = await _turn(visit, message, receive)
            if shed is not None:
                return self._sent_away(name, shed)
            if visit.is_on:  # the client has gone meanwhile
                # What goes on is what was judged: the SDK reads a body in its own way, and would
                # run as a request what was taken here for something else.
                await self._answer(scope, encode(message), receive, _leaving(visit, scope, send))
        return None

    async def _answer(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        if _names_events(scope):
            await self._events.handle_request(scope, _replay(body, receive), send)
        else:
            await self._answer_plainly(scope, body, receive, send)

    def _sent_away(self, name: str, shed: Shed) -> Response:
        """The log tells of it once a minute: a crowd should not fill it as well."""
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + QUIET_SECONDS
            count = self._limits.shed.total()
            logger.warning("sending requests away, %d so far, this of %s: %s", count, name, shed)
        return refusal(429, shed.message, {"Retry-After": str(shed.retry_seconds)})

    async def _message(
        self, scope: Scope, receive: Receive
    ) -> JSONRPCRequest | JSONRPCNotification | Response:
        body = await self._body(scope, receive)
        if isinstance(body, Response):
            return body
        try:
            message = read(body)
        except Malformed as failure:
            return _bad(failure.answer)
        if not isinstance(message, JSONRPCRequest | JSONRPCNotification):
            # An answer, and nothing was asked; or one that is a request as well.
            return _bad(fault(body))
        return message

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
        async with _while_connected(receive):
            await self._plain.handle_request(scope, _replay(body, _silence), send)


@asynccontextmanager
async def _while_connected(receive: Receive) -> AsyncIterator[None]:
    """A block that is left as soon as the client hangs up."""
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        yield
        tasks.cancel_scope.cancel()


def _peer(scope: Scope) -> str:
    host, port = scope["client"] or ("", 0)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _asked(message: JSONRPCRequest | JSONRPCNotification) -> str:
    name = (message.params or {}).get("name")
    return name if message.method == "tools/call" and isinstance(name, str) else message.method


async def _turn(visit: Visit, message: JSONRPCMessage, receive: Receive) -> Shed | None:
    """Wait until the message may be answered, or its client has gone; or why it is not."""
    if isinstance(message, JSONRPCRequest) and message.method == "subscriptions/listen":
        return visit.subscribe()
    shed = visit.enter()
    if visit.waits:
        async with _while_connected(receive):
            shed = await visit.turn()
    return shed


def _leaving(visit: Visit, scope: Scope, send: Send) -> Send:
    """A `send` that ends the visit's turn where its client does not read."""
    connection = _connection(scope)

    async def say(message: Message) -> None:
        if connection.unread:
            visit.pass_on()
        await send(message)
        if connection.unread:
            visit.pass_on()

    return say


def _connection(scope: Scope) -> BoundedProtocol:
    connection: BoundedProtocol = scope["state"]["connection"]
    return connection


def _bad(answer: JSONRPCError) -> Response:
    """What a byte stream answers, too. The SDK would with kilobytes of pydantic's prose."""
    return Response(encode(answer), status_code=400, media_type="application/json")


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
