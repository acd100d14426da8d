"""MemoryTransport: agents in the same process, for tests and benchmarks."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.server.lowlevel import Server
from mcp.server.runner import serve_dual_era_loop
from mcp.shared.message import SessionMessage

from transports.base import PAD_CHARS, Identity, Target, TransportStreams
from transports.errors import Unreachable
from transports.session import discover
from transports.tasks import OwnsTasks

__all__ = ["MemoryTransport"]

logger = logging.getLogger(__name__)

BUFFER_MESSAGES = 16
"""Enough that neither side waits for the other over one call; a full buffer only slows."""

_Message = SessionMessage | Exception


class MemoryTransport(OwnsTasks):
    """Serves each conversation by a server object of this process.

    A server's lifespan is entered once per conversation, as over any other stream.

    Args:
        servers: by `Target.key` or by node name. Not copied: an agent may come and go.
    """

    name = "memory"

    def __init__(self, servers: Mapping[str, Server[Any]]) -> None:
        self._servers = servers

    def applies(self, target: Target) -> bool:
        """Whether there is such a server."""
        return target.key in self._servers or target.node in self._servers

    async def probe(self, target: Target, *, pad_chars: int = PAD_CHARS) -> Identity:
        """Ask the server who it is.

        Raises:
            TransportError: `Unreachable` where there is none; `BadPeer` if it is no agent.
        """
        return await discover(self, target, pad_chars=pad_chars)

    @asynccontextmanager
    async def connect(self, target: Target) -> AsyncIterator[TransportStreams]:
        """A conversation with the server, which ends whatever it still does for us on leaving.

        Raises:
            Unreachable: there is no such server.
        """
        server = self._servers.get(target.key) or self._servers.get(target.node)
        if server is None:
            raise Unreachable("no such server", target=target, transport=self.name)
        _ = self._tasks  # raises outside of the block, before there is anything to close
        to_us, inbox = anyio.create_memory_object_stream[_Message](BUFFER_MESSAGES)
        outbox, to_server = anyio.create_memory_object_stream[_Message](BUFFER_MESSAGES)
        self._keep_running(_serve, server, to_server, to_us)
        with inbox, outbox:
            yield inbox, outbox


async def _serve(
    server: Server[Any],
    read: MemoryObjectReceiveStream[_Message],
    write: MemoryObjectSendStream[_Message],
) -> None:
    with read, write:
        try:
            async with server.lifespan(server) as state:
                await serve_dual_era_loop(server, read, write, lifespan_state=state)
        # The boundary to the server's own code: one that fails must not end its siblings.
        except Exception:
            logger.exception("the server %s failed", server.name)
