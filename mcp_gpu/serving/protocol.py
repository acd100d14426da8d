"""uvicorn's HTTP/1.1 with a bound on connections, and on how long a client is waited for."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["KEEP_ALIVE_SECONDS", "BoundedProtocol"]

logger = logging.getLogger(__name__)

CONNECTIONS = 1024
"""Open connections, the cap on what clients together can hold."""

HEADER_SECONDS = 10.0
"""How long a client may take to send a request's head, or what is left of one that was answered
before its body had come. uvicorn has no such limit."""

KEEP_ALIVE_SECONDS = 75
"""Idle connections are kept longer than common clients and proxies keep theirs (30 to 60 s), so
that it is the client who closes and no request meets a closing connection."""

UNREAD_SECONDS = float(KEEP_ALIVE_SECONDS)
"""How long a client may take to read what is written to it. The same: of those who do not read and
those who say nothing, the clock that ends first tells who has been waited for longest."""

UNREAD_ANSWERS = 128
"""Answers longer than the kernel takes that may wait to be read: each is up to a MB here, and the
clock that runs for them is long. Past them the one that has waited longest is given up."""


class BoundedProtocol(H11Protocol):
    """One connection. A clock runs whenever its client is waited for: for a head or a body, for
    reading an answer, or for another request. uvicorn's own runs for the last alone, only after a
    first answer, and any byte ends it."""

    _head_deadline: asyncio.TimerHandle | None = None
    _unread_deadline: asyncio.TimerHandle | None = None
    _silent_until: ClassVar[float] = 0.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.app_state = {**self.app_state, "connection": self}

    @property
    def unread(self) -> bool:
        """Whether something that was written waits to be read."""
        return self.flow.write_paused

    async def until_read(self) -> None:
        """Wait for that, which ends with its clock at the latest."""
        await self.flow.drain()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # Writing is paused from the first byte that the kernel does not take, so that no unread
        # answer is without a clock, however small, nor another made before it.
        transport.set_write_buffer_limits(high=0)
        if len(self.connections) > CONNECTIONS and not self._make_room():
            self._tell_of_refusal()
            transport.write(b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\r\n")
            transport.close()
        else:
            self._wait()

    def data_received(self, data: bytes) -> None:
        if not self.transport.is_closing():
            super().data_received(data)
            self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread_deadline is None:
            self._unread_deadline = self.loop.call_later(UNREAD_SECONDS, self._cut)
            self._give_up_one_unread()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget_unread()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # uvicorn forgets to after a reset, and keeps the connection's memory for the whole time.
        self._stop_clocks()

    def _give_up_one_unread(self) -> None:
        unread = [
            (each._unread_deadline.when(), id(each), each)
            for each in self.connections
            if isinstance(each, BoundedProtocol) and each._unread_deadline is not None
        ]
        if len(unread) > UNREAD_ANSWERS:
            min(unread)[-1]._cut()

    def _make_room(self) -> bool:
        """Close the connection whose client has been waited for longest, of those that never sent
        a whole request if there are any: who only holds on must not keep others out."""
        waiting = []
        for each in self.connections:
            if not isinstance(each, BoundedProtocol):
                continue
            clock = each._head_deadline or each._unread_deadline or each.timeout_keep_alive_task
            if clock is not None:  # nor is it this one's, which runs only from now on
                waiting.append((each._head_deadline is None, clock.when(), id(each), each))
        if waiting:
            min(waiting)[-1]._cut()
        return bool(waiting)

    def _wait(self) -> None:
        """Run the clock for what the client owes: part of a request, or the next one."""
        if self.transport.is_closing():
            self._forget_head()
        elif self.cycle is not None and not self.cycle.response_complete:
            self._forget_head()  # it is the client who waits
        elif (
            self.cycle is None  # nothing ever was
            or self.conn.their_state is h11.SEND_BODY
            or self.conn.trailing_data[0]
        ):
            if self._head_deadline is None:
                self._head_deadline = self.loop.call_later(HEADER_SECONDS, self._cut)
        else:
            self._forget_head()
            if self.timeout_keep_alive_task is None:  # some byte has ended it
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )

    def _cut(self) -> None:
        """Wait for nothing more, not even until what was written has been read."""
        self._stop_clocks()
        self.transport.abort()

    def _stop_clocks(self) -> None:
        self._forget_head()
        self._forget_unread()
        self._unset_keepalive_if_required()

    def _forget_head(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _forget_unread(self) -> None:
        if self._unread_deadline is not None:
            self._unread_deadline.cancel()
            self._unread_deadline = None

    @classmethod
    def _tell_of_refusal(cls) -> None:
        """Once a minute: whoever opens too many connections should not fill the log as well."""
        now = time.monotonic()
        if now >= cls._silent_until:
            cls._silent_until = now + 60
            logger.warning("refusing connections: %d are open", CONNECTIONS)
