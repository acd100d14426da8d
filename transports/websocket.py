"""A WebSocket to an API server: binary messages, and an end that is an end.

Only imported where one is opened: aiohttp is what `transports.kubernetes` loads late.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import cast

import aiohttp
import anyio
from aiohttp import WSCloseCode, WSMsgType

__all__ = ["CLOSE_SECONDS", "WebSocket"]

CLOSE_SECONDS = 1.0
"""How long the other side may take to agree to the end."""


NO_LINGER = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
"""`SO_LINGER` for an end without waiting for what is still to be sent."""


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
        if self._tcp is None:
            return
        try:
            if self._opened.close_code in (None, WSCloseCode.ABNORMAL_CLOSURE):
                # A reset, so that a server that reads nothing learns of it too.
                self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            # Closed it is; but asyncio first waits to be rid of what is written, for as long as
            # the other side reads nothing, and then for TLS's own good-bye.
            self._tcp.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended already
