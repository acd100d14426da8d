"""Standard input and output as the channel of one MCP client.

Both are moved by daemon threads of our own: that works for pipes, sockets, files and terminals
alike, leaves the descriptors' blocking mode as it was found (it is shared with the parent), and a
thread stuck in the kernel does not keep the process from ending, as anyio's worker threads would.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import anyio
from anyio import from_thread
from anyio.lowlevel import EventLoopToken, current_token
from mcp.server.lowlevel import Server

from mcp_gpu.serving.stream import Stop, serve_stream
from mcp_gpu.telemetry.origin import ORIGIN, Origin

__all__ = ["claim", "serve_stdio"]

logger = logging.getLogger(__name__)

CHUNK_BYTES = 65_536


async def serve_stdio(server: Server[Any], *, lifespan_state: Any, stop: Stop) -> None:
    """Serve the client at stdin and stdout; its end requests the stop of the whole process."""
    ORIGIN.set(Origin(listener="stdio"))
    channel = _StdioChannel(*claim(), current_token())
    await serve_stream(server, channel, lifespan_state=lifespan_state, stop=stop)
    stop.requested.set()


@cache
def claim() -> tuple[int, int]:
    """Private duplicates of stdin and stdout, whose own numbers from now on lead elsewhere:
    a stray print goes to stderr instead of into the protocol, and a child reads no request.

    Once per process, whose streams they are. A role that may start programs before it serves,
    such as those that make credentials, calls it first.
    """
    sys.stdout.flush()
    stdin, stdout = os.dup(0), os.dup(1)
    if sys.platform == "win32":
        import msvcrt

        for descriptor in (stdin, stdout):
            msvcrt.setmode(descriptor, os.O_BINARY)
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return stdin, stdout


class _StdioChannel:
    """A `ByteChannel` on two blocking descriptors."""

    def __init__(self, stdin: int, stdout: int, loop: EventLoopToken) -> None:
        self._stdin = stdin
        self._stdout = stdout
        self._loop = loop
        self._feed, self._chunks = anyio.create_memory_object_stream[bytes](0)
        self._outbox: queue.SimpleQueue[tuple[bytes, Callable[[bool], None]]] = queue.SimpleQueue()
        threading.Thread(target=self._read_all, name="stdin", daemon=True).start()
        threading.Thread(target=self._write_all, name="stdout", daemon=True).start()

    async def receive(self) -> bytes:
        return await self._chunks.receive()

    async def send(self, item: bytes) -> None:
        written = anyio.Event()
        outcomes: list[bool] = []

        def tell(success: bool) -> None:
            outcomes.append(success)
            written.set()

        self._outbox.put((item, tell))
        await written.wait()
        if not outcomes[0]:
            raise anyio.BrokenResourceError

    async def aclose(self) -> None:
        """Nothing to wait for. The descriptors stay open: threads may be blocked on them."""
        self._feed.close()
        self._chunks.close()

    def _read_all(self) -> None:
        with suppress(anyio.RunFinishedError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            while chunk := self._read():
                from_thread.run(self._feed.send, chunk, token=self._loop)
            from_thread.run_sync(self._feed.close, token=self._loop)

    def _read(self) -> bytes:
        while True:
            try:
                return os.read(self._stdin, CHUNK_BYTES)
            except BlockingIOError:  # the parent made its end non-blocking, and so ours
                select.select([self._stdin], [], [])
            except OSError as error:
                logger.warning("reading stdin failed: %s", error.strerror)
                return b""

    def _write_all(self) -> None:
        with suppress(anyio.RunFinishedError):
            while True:
                item, tell = self._outbox.get()
                from_thread.run_sync(tell, self._write(item), token=self._loop)

    def _write(self, item: bytes) -> bool:
        rest = memoryview(item)
        while rest:
            try:
                rest = rest[os.write(self._stdout, rest) :]
            except BlockingIOError:
                select.select([], [self._stdout], [])
            except OSError as error:
                logger.info("the client at stdout has gone: %s", error.strerror)
                return False
        return True
