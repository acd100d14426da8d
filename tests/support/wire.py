"""Ways to talk to a server under test, from the SDK's client down to raw bytes."""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import ByteStream, Process
from mcp.client import Transport
from mcp.shared.message import SessionMessage

from mcp_gpu.serving.server import Listening, Served, serve
from transports.framing import LineSplitter, decode, encode

PATIENCE_SECONDS = 20.0
"""Bounds every wait of a test; generous, because the machine may be busy."""

DEMO = Path(__file__).with_name("demo_server.py")

MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "tester", "version": "1"},
}

ERAS = ("2026-07-28", "legacy")


def request(method: str, number: int | str = 1, /, **params: Any) -> dict[str, Any]:
    """A request at 2026-07-28; `meta` joins its `_meta`."""
    meta = {**MODERN, **params.pop("meta", {})}
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": {**params, "_meta": meta}}


def call(tool: str, number: int | str = 1, /, **arguments: Any) -> dict[str, Any]:
    """A `tools/call` request at 2026-07-28."""
    return request("tools/call", number, name=tool, arguments=arguments)


def headers(message: dict[str, Any], accept: str | None = None) -> dict[str, str]:
    """The HTTP headers that 2026-07-28 wants beside a message."""
    found = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": message["method"]}
    if "name" in message["params"]:
        found["Mcp-Name"] = message["params"]["name"]
    return found if accept is None else {**found, "Accept": accept}


@asynccontextmanager
async def serving(served: Served, **options: Any) -> AsyncIterator[Listening]:
    """`serve` in this process; leaving asks it to stop and waits until it has."""
    stop = options.pop("stop", None) or anyio.Event()
    with anyio.fail_after(PATIENCE_SECONDS):
        async with anyio.create_task_group() as tasks:
            start = partial(serve, served, stop=stop, signals=False, **options)
            yield await tasks.start(start)
            stop.set()


class Lines:
    """JSON lines over a byte stream."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self._splitter = LineSplitter()
        self._lines: list[bytes] = []

    async def send(self, *messages: object) -> None:
        for message in messages:
            raw = message if isinstance(message, bytes) else json.dumps(message).encode()
            await self.stream.send(raw + b"\n")

    async def receive(self) -> Any:
        """The next message. Raises `anyio.EndOfStream`."""
        while not self._lines:
            self._lines = self._splitter.feed(await self.stream.receive())
        return json.loads(self._lines.pop(0))

    async def until(self, number: int | str) -> Any:
        """The answer to a request, past notifications and other answers."""
        while True:
            message = await self.receive()
            if message.get("id") == number:
                return message

    async def rest(self) -> list[Any]:
        """Everything up to the end."""
        found = []
        try:
            while True:
                found.append(await self.receive())
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return found


async def end_of(stream: ByteStream) -> bytes:
    """All that comes before the other side closes."""
    found = b""
    try:
        while True:
            found += await stream.receive()
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        return found


@asynccontextmanager
async def unix_lines(path: Path) -> AsyncIterator[Lines]:
    async with await anyio.connect_unix(path) as stream:
        yield Lines(stream)


def unix_transport(path: Path) -> Transport:
    """An SDK client's transport over the agent's Unix socket."""

    @asynccontextmanager
    async def connect() -> AsyncIterator[ByteStream]:
        async with await anyio.connect_unix(path) as stream:
            yield stream

    return byte_transport(connect())


def byte_transport(opened: AbstractAsyncContextManager[Any]) -> Transport:
    """An SDK client's transport over whatever sends and receives bytes: one conversation, and
    nothing pinned."""

    @asynccontextmanager
    async def connect() -> AsyncIterator[Any]:
        received, messages = anyio.create_memory_object_stream[SessionMessage | Exception](16)
        outgoing, outbox = anyio.create_memory_object_stream[SessionMessage](16)

        async with opened as stream, anyio.create_task_group() as tasks:

            async def read() -> None:
                splitter = LineSplitter()
                async with received:
                    while True:
                        try:
                            chunk = await stream.receive()
                        except anyio.EndOfStream:
                            return
                        for line in splitter.feed(chunk):
                            await received.send(SessionMessage(decode(line)))

            async def write() -> None:
                async with outbox:
                    async for item in outbox:
                        await stream.send(encode(item.message))

            tasks.start_soon(read)
            tasks.start_soon(write)
            async with messages, outgoing:
                yield messages, outgoing
            tasks.cancel_scope.cancel()

    return connect()


@asynccontextmanager
async def child(
    *arguments: str,
    program: Path = DEMO,
    patience_seconds: float = 2 * PATIENCE_SECONDS,
    **options: Any,
) -> AsyncIterator[Process]:
    """A process that is killed at the end unless it has ended."""
    with anyio.fail_after(patience_seconds):
        async with await anyio.open_process(
            [sys.executable, str(program), *arguments], **options
        ) as process:
            try:
                yield process
            finally:
                if process.returncode is None:
                    process.kill()


async def announced(process: Process) -> tuple[dict[str, Any], Lines]:
    """Where a demo server listens, and the rest of its stderr."""
    assert process.stderr is not None
    lines = Lines(process.stderr)  # type: ignore[arg-type]
    return await lines.receive(), lines
