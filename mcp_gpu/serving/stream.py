"""One MCP client on a byte stream: framing, both protocol eras, and an end that loses no answer.

The SDK's dispatcher cancels what is in flight as soon as its input ends. A client that sends its
requests and half-closes (`printf ... | mcp-gpu attach`), or a server told to stop, still wants the
answers: so the input is held open here until they are written.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.server.lowlevel import Server
from mcp.server.runner import serve_dual_era_loop
from mcp.shared.dispatcher import as_request_id, coerce_request_id
from mcp.shared.message import SessionMessage
from mcp_types import (
    INVALID_REQUEST,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    RequestId,
)

from mcp_gpu.serving.message import Malformed, error, read
from transports.framing import FrameTooLong, LineSplitter, encode

__all__ = ["ByteChannel", "Stop", "serve_stream"]

logger = logging.getLogger(__name__)

REQUEST_BYTES = 1 << 20
"""Longest request, as over HTTP: arguments are names and numbers."""

IN_FLIGHT = 128
"""Requests under way per client. Past it nothing more is read: the client waits, not the server."""

SUBSCRIPTIONS = 16
"""Open subscriptions per client, which last. Were they among those, they could end its reading."""

DRAIN_SECONDS = 30.0
"""How long calls may go on for a client that has said all it will say."""

FLUSH_SECONDS = 2.0
"""How long the last answer may then still take to be written to a client that reads nothing."""


class ByteChannel(Protocol):
    """What a client talks through. `anyio.abc.ByteStream` is one."""

    async def receive(self) -> bytes:
        """Some bytes. Raises `anyio.EndOfStream` after the last, `BrokenResourceError`."""

    async def send(self, item: bytes) -> None:
        """Write all of it. Raises `anyio.BrokenResourceError`."""

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Stop:
    """The request that everything which serves should end."""

    end_subscriptions: Callable[[], None] = lambda: None
    """Ends open `subscriptions/listen` streams, which would never end themselves. Called by
    each listener once it reads no more, so that none is opened behind it."""
    announced: anyio.Event = field(default_factory=anyio.Event)
    """Set as soon as the end is certain. Until it is `requested` too, everything is served as ever,
    but that `/readyz` tells load balancers to go elsewhere."""
    requested: anyio.Event = field(default_factory=anyio.Event)


async def serve_stream(
    server: Server[Any],
    channel: ByteChannel,
    *,
    lifespan_state: Any,
    stop: Stop,
    write_seconds: float = math.inf,
) -> None:
    """Serve one client until it has gone or `stop` is requested; closes the channel.

    Args:
        write_seconds: how long the client may leave an answer unread before it counts as gone.
    """
    client = _Client(channel, write_seconds)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.read, stop)
            tasks.start_soon(client.write)
            await serve_dual_era_loop(
                server, client.requests, client.answers, lifespan_state=lifespan_state
            )
            tasks.cancel_scope.deadline = anyio.current_time() + FLUSH_SECONDS
    finally:
        client.close()
        with anyio.CancelScope(shield=True), suppress(anyio.BrokenResourceError):
            await channel.aclose()


class _Client:
    """The two ends of one conversation, and which requests are still owed an answer."""

    requests: MemoryObjectReceiveStream[SessionMessage | Exception]
    answers: MemoryObjectSendStream[SessionMessage]

    def __init__(self, channel: ByteChannel, write_seconds: float) -> None:
        self._channel = channel
        self._write_seconds = write_seconds
        self._received, self.requests = anyio.create_memory_object_stream[
            SessionMessage | Exception
        ](0)
        self.answers, self._answered = anyio.create_memory_object_stream[SessionMessage](0)
        self._calls: set[RequestId] = set()
        self._subscriptions: set[RequestId] = set()
        self._settled = anyio.Event()
        self._writing = anyio.Lock()
        self._reading = anyio.CancelScope()

    def close(self) -> None:
        for stream in (self._received, self.requests, self.answers, self._answered):
            stream.close()

    async def read(self, stop: Stop) -> None:
        """Hand requests to the server until there are no more, then see them answered."""
        with self._received:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._stop_reading, stop)
                with self._reading:
                    await self._read_frames()
                tasks.cancel_scope.cancel()
            with anyio.move_on_after(DRAIN_SECONDS):
                await self._until(lambda: not self._calls)
                if stop.requested.is_set():
                    stop.end_subscriptions()
                    await self._until(lambda: not self._subscriptions)

    async def _stop_reading(self, stop: Stop) -> None:
        await stop.requested.wait()
        self._reading.cancel()

    async def _read_frames(self) -> None:
        splitter = LineSplitter(REQUEST_BYTES)
        try:
            while True:
                for line in splitter.feed(await self._channel.receive()):
                    await self._take(line)
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # the client has said all, or has gone, or the server has ended the session
        except FrameTooLong as failure:
            await self._write(error(None, INVALID_REQUEST, f"{failure}; closing"))
            self._gone()

    async def _take(self, line: bytes) -> None:
        try:
            message = read(line)
        except Malformed as failure:
            await self._write(failure.answer)
            return
        if isinstance(message, JSONRPCRequest):
            await self._ask(message)
            return
        await self._received.send(SessionMessage(message))
        if isinstance(message, JSONRPCNotification) and message.method == "notifications/cancelled":
            # A cancelled request is never answered.
            self._settle(as_request_id((message.params or {}).get("requestId")))

    async def _ask(self, request: JSONRPCRequest) -> None:
        await self._until(lambda: len(self._calls) < IN_FLIGHT)
        key = coerce_request_id(request.id)
        listens = request.method == "subscriptions/listen"
        if key in self._calls or key in self._subscriptions:
            # They would count as one, and be answered as one.
            text = f"Invalid Request: a request with the id {request.id!r:.100} is under way"
            await self._write(error(None, INVALID_REQUEST, text))
        elif listens and len(self._subscriptions) >= SUBSCRIPTIONS:
            text = f"Too many subscriptions: {SUBSCRIPTIONS} are open here"
            await self._write(error(request.id, INVALID_REQUEST, text))
        else:
            (self._subscriptions if listens else self._calls).add(key)
            try:
                await self._received.send(SessionMessage(request))
            except anyio.get_cancelled_exc_class():
                self._settle(request.id)  # it came too late to be served, so none is owed
                raise

    async def write(self) -> None:
        """Write answers and notifications until the server has none left."""
        with self._answered:
            async for item in self._answered:
                if not await self._write(item.message):
                    return
                if isinstance(item.message, JSONRPCResponse | JSONRPCError):
                    self._settle(item.message.id)

    async def _write(self, message: JSONRPCMessage) -> bool:
        """Whether the client took it. One that does not is gone: half a frame can't be mended."""
        try:
            with anyio.fail_after(self._write_seconds):
                async with self._writing:
                    await self._channel.send(encode(message))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, TimeoutError):
            self._gone()
            return False
        return True

    def _gone(self) -> None:
        self._reading.cancel()
        self._calls.clear()
        self._subscriptions.clear()
        self._settle(None)

    def _settle(self, request: RequestId | None) -> None:
        if request is not None:
            # As the SDK matches them: "7" cancels 7.
            key = coerce_request_id(request)
            self._calls.discard(key)
            self._subscriptions.discard(key)
        self._settled.set()
        self._settled = anyio.Event()

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._settled.wait()
