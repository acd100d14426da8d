"""A WebSocket to an API server: binary messages, and an end that is an end.

Only imported where one is opened: aiohttp is what `transports.kubernetes` loads late.
"""

from __future__ import annotations

import socket
from typing import cast

import aiohttp
import anyio
from aiohttp import WSMsgType

__all__ = ["CLOSE_SECONDS", "WebSocket"]

CLOSE_SECONDS = 1.0
"""How long the other side may take to agree to the end."""


class WebSocket:
    """One open WebSocket. Read by one task, written by one."""

    def __init__(self, opened: aiohttp.ClientWebSocketResponse) -> None:
        self._opened = opened
        # Taken now: once closed, the connection no longer gives it away.
        self._tcp = cast("socket.socket | None", opened.get_extra_info("socket"))

    @property
    def protocol(self) -> str | None:
        """The subprotocol that the server has picked."""
        return self._opened.protocol

    async def receive(self) -> bytes:
        """The next binary message.

        Raises:
            anyio.EndOfStream: closed, or cut off.
            anyio.BrokenResourceError: what arrives is no WebSocket traffic that we accept.
        """
        while True:
            message = await self._opened.receive()
            match message.type:
                case WSMsgType.BINARY:
                    return cast("bytes", message.data)
                case WSMsgType.TEXT:
                    continue  # our protocols have none
                case WSMsgType.ERROR:
                    raise anyio.BrokenResourceError from self._opened.exception()
                case _:
                    raise anyio.EndOfStream

    async def send(self, message: bytes) -> None:
        """Send a binary message; returns once it is on its way or in a bounded buffer.

        The caller bounds the wait with a cancel scope: a server that reads nothing blocks it
        for ever.

        Raises:
            anyio.BrokenResourceError: the connection has ended.
        """
        try:
            await self._opened.send_bytes(message)
        except (aiohttp.ClientError, OSError) as error:
            raise anyio.BrokenResourceError from error

    async def aclose(self) -> None:
        """Close it within `CLOSE_SECONDS`, with nothing left of the connection after that."""
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            await self._opened.close()
        if self._tcp is not None:
            # A close alone would wait for as long as the other side reads nothing: asyncio
            # first wants to be rid of what is written, and TLS of its own good-bye.
            try:
                self._tcp.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has ended already
