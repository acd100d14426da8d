"""Many conversations on one connection: JSON-RPC ids and progress tokens mapped both ways.

Every SDK session counts its requests from 1. On a shared connection each request gets
an id of its own, which serves as its progress token too; the answer gets its own back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import anyio
from anyio.lowlevel import checkpoint
from mcp.shared.message import SessionMessage
from mcp.types import (
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    ProgressToken,
    RequestId,
)

from transports.errors import Broken, Failure

__all__ = ["Channel", "Multiplexer"]

CHANNEL_BUFFER_MESSAGES = 256
"""Messages a conversation may leave unread: one answer per request and its progress
notifications, which our tools send at most a few times a second."""


@dataclass(slots=True)
class _Route:
    """A request that waits for its answer."""

    channel: Channel
    request_id: RequestId
    progress_token: ProgressToken | None
    cancellable: bool


class Multiplexer:
    """The conversations of one connection.

    Args:
        send: takes a message for the peer. Never blocks, never fails.
    """

    def __init__(self, send: Callable[[JSONRPCMessage], None]) -> None:
        self._send = send
        self._last_id = 0
        self._routes: dict[int, _Route] = {}
        self._channels: set[Channel] = set()
        self.failure: Failure | None = None

    @property
    def pending(self) -> int:
        """How many requests wait for an answer."""
        return len(self._routes)

    def open(self) -> Channel:
        """A conversation of its own on the connection."""
        channel = Channel(self)
        self._channels.add(channel)
        return channel

    def receive(self, message: JSONRPCMessage) -> None:
        """Hand a message of the peer to the conversation it belongs to, or drop it.

        Dropped are late answers, and what 2026-07-28 does not know: requests of the server,
        and notifications that belong to no request.
        """
        match message:
            case JSONRPCResponse(id=int(wire_id)) | JSONRPCError(id=int(wire_id)):
                if (route := self._forget(wire_id)) is not None:
                    message.id = route.request_id
                    route.channel.deliver(message)
            case JSONRPCNotification(
                method="notifications/progress", params={"progressToken": int(wire_id)}
            ):
                route = self._routes.get(wire_id)
                if route is not None and route.progress_token is not None:
                    params = dict(message.params or {})
                    params["progressToken"] = route.progress_token
                    route.channel.deliver(message.model_copy(update={"params": params}))

    def close(self, failure: Failure) -> None:
        """End every conversation: whoever waits for an answer learns of the failure."""
        self.failure = failure
        for route in self._routes.values():
            route.channel.failure = failure
        self._routes.clear()
        for channel in self._channels:
            channel.hang_up()

    def request(self, channel: Channel, message: JSONRPCRequest) -> int:
        """Send a request of a conversation under an id of the connection."""
        self._last_id += 1
        params: dict[str, Any] = dict(message.params or {})
        meta: dict[str, Any] = params.get("_meta") or {}
        token = meta.get("progressToken")
        if token is not None:
            params["_meta"] = {**meta, "progressToken": self._last_id}
        update: dict[str, Any] = {"id": self._last_id}
        if params:
            update["params"] = params
        self._routes[self._last_id] = _Route(
            channel=channel,
            request_id=message.id,
            progress_token=token,
            # The specification forbids cancelling the negotiation.
            cancellable=message.method != "server/discover",
        )
        channel.waiting[message.id] = self._last_id
        self._send(message.model_copy(update=update))
        return self._last_id

    def cancel(self, wire_id: int, reason: str) -> None:
        """Tell the peer that nobody waits for an answer any more. A late one is dropped."""
        route = self._forget(wire_id)
        if route is not None and route.cancellable:
            self._send(
                JSONRPCNotification(
                    jsonrpc="2.0",
                    method="notifications/cancelled",
                    params={"requestId": wire_id, "reason": reason},
                )
            )

    def notify(self, message: JSONRPCNotification) -> None:
        """Send a notification that belongs to no request."""
        self._send(message)

    def discard(self, channel: Channel) -> None:
        """Forget a conversation that has ended."""
        self._channels.discard(channel)

    def _forget(self, wire_id: int) -> _Route | None:
        route = self._routes.pop(wire_id, None)
        if route is not None:
            route.channel.waiting.pop(route.request_id, None)
        return route


class Channel:
    """One conversation: the write stream of an SDK session, with the read stream beside it."""

    def __init__(self, multiplexer: Multiplexer) -> None:
        self._multiplexer = multiplexer
        self._deliver, self.inbox = anyio.create_memory_object_stream[SessionMessage | Exception](
            CHANNEL_BUFFER_MESSAGES
        )
        self.waiting: dict[RequestId, int] = {}
        """Requests without an answer: the session's id to the connection's."""
        self.failure: Failure | None = None
        """Why a request of this conversation will get no answer, if one will not."""

    async def send(self, item: SessionMessage, /) -> None:
        """Send a message to the peer.

        Raises:
            anyio.BrokenResourceError: the connection has ended. The SDK knows what to do.
        """
        if self._multiplexer.failure is not None or self.failure is not None:
            self.failure = self.failure or self._multiplexer.failure
            raise anyio.BrokenResourceError
        match item.message:
            case JSONRPCRequest() as request:
                self._multiplexer.request(self, request)
            case JSONRPCNotification(method="notifications/cancelled", params=params):
                wire_id = self.waiting.get((params or {}).get("requestId", ""))
                if wire_id is not None:
                    self._multiplexer.cancel(wire_id, str((params or {}).get("reason", "")))
            case JSONRPCNotification() as notification:
                self._multiplexer.notify(notification)
        # After the hand-over: a message is sent whole or not at all, whoever is cancelled.
        await checkpoint()

    def deliver(self, message: JSONRPCMessage) -> None:
        """Put a message of the peer before the session. One that reads too slowly is cut off."""
        try:
            self._deliver.send_nowait(SessionMessage(message))
        except anyio.WouldBlock:
            self.failure = Failure(
                Broken, f"more than {CHANNEL_BUFFER_MESSAGES} messages were left unread"
            )
            self.hang_up()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # the session has left

    def hang_up(self) -> None:
        """Let the session see the end of its read stream, which fails what it waits for."""
        self._deliver.close()

    def close(self) -> None:
        """End the conversation; the peer may stop working on what is still unanswered."""
        for wire_id in tuple(self.waiting.values()):
            if self._multiplexer.failure is None:
                self._multiplexer.cancel(wire_id, "the caller has left")
        self._multiplexer.discard(self)
        self._deliver.close()
        self.inbox.close()

    async def aclose(self) -> None:
        await checkpoint()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()
