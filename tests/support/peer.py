"""A small MCP server for the transports' tests: in this process, as a child on stdio or on HTTP.

As a program: `python peer.py stdio`, or `python peer.py http HOST`, which prints its port.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing, nullcontext, suppress
from pathlib import Path
from typing import Any

import anyio
import uvicorn
from anyio.abc import ByteStream, SocketAttribute
from mcp import MCPError, types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.message import SessionMessage
from mcp.types.version import LATEST_MODERN_VERSION
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from transports.base import IDENTITY_META_KEY, PAD_META_KEY, Identity, Target
from transports.framing import LineSplitter, decode, encode

Context = ServerRequestContext[Any, Any]

PEER = Path(__file__)
RELAY = PEER.with_name("relay.py")

TOOLS = ("echo", "big", "meet", "wait", "release", "waiting", "progress", "fail", "crash", "whoami")


class Peer:
    """An agent's stand-in, with tools whose timing a test decides."""

    def __init__(self, node: str = "peer-1") -> None:
        self.identity = Identity(
            name="mcp-gpu",
            version="0",
            node=node,
            instance=str(os.getpid()),
            started_at=1.5,
            tools={"echo": ("text",)},
        )
        self.requests: list[str] = []
        """Methods of all requests and notifications received, in order."""
        self.padding: list[int] = []
        """What each request for its identity asked for, in characters."""
        self.waiting = 0
        """Calls of `wait` under way."""
        self.connections = 0
        """Byte streams served so far."""
        self._events: dict[str, anyio.Event] = defaultdict(anyio.Event)
        self._met: dict[str, int] = defaultdict(int)
        self.server: Server[Any] = Server(
            "peer",
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            get_tool_input_schema=lambda name: None,
        )
        self.server.add_request_handler("server/discover", types.RequestParams, self._discover)
        self.server.middleware.append(self._record)

    async def _record(self, ctx: Context, call_next: Any) -> Any:
        self.requests.append(ctx.method)
        return await call_next(ctx)

    async def _discover(self, ctx: Context, params: types.RequestParams) -> types.DiscoverResult:
        pad_chars = (ctx.meta or {}).get(PAD_META_KEY, 0)
        self.padding.append(pad_chars)
        return types.DiscoverResult(
            supported_versions=[LATEST_MODERN_VERSION],
            capabilities=types.ServerCapabilities(tools=types.ToolsCapability()),
            ttl_ms=0,
            cache_scope="public",
            _meta={IDENTITY_META_KEY: self.identity.to_wire(), PAD_META_KEY: "x" * pad_chars},
        )

    async def _list_tools(
        self, ctx: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        tools = [types.Tool(name=name, input_schema={"type": "object"}) for name in TOOLS]
        return types.ListToolsResult(tools=tools, ttl_ms=0, cache_scope="public")

    async def _call_tool(
        self, ctx: Context, params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        if params.name not in TOOLS:
            raise MCPError(types.INVALID_PARAMS, f"unknown tool {params.name}")
        text = await getattr(self, f"_{params.name}")(ctx, **(params.arguments or {}))
        return types.CallToolResult(
            content=[types.TextContent(type="text", text=text or "")],
            is_error=params.name == "fail",
        )

    async def _echo(self, ctx: Context, text: str) -> str:
        return text

    async def _big(self, ctx: Context, chars: int) -> str:
        return "b" * chars

    async def _meet(self, ctx: Context, name: str, count: int) -> str:
        """Return once as many calls are here at the same time."""
        self._met[name] += 1
        if self._met[name] == count:
            self._events[name].set()
        await self._events[name].wait()
        return str(self._met[name])

    async def _wait(self, ctx: Context, name: str) -> str:
        self.waiting += 1
        try:
            await self._events[name].wait()
        finally:
            self.waiting -= 1
        return name

    async def _release(self, ctx: Context, name: str) -> str:
        self._events[name].set()
        return name

    async def _waiting(self, ctx: Context) -> str:
        return str(self.waiting)

    async def _progress(self, ctx: Context, steps: int, label: str = "") -> str:
        for step in range(1, steps + 1):
            await ctx.session.report_progress(step, steps, label)
        return label

    async def _fail(self, ctx: Context) -> str:
        return "it failed"

    async def _crash(self, ctx: Context, status: int = 7) -> str:
        print("\x1b[31mboom\x1b[0m", file=sys.stderr, flush=True)
        os._exit(status)

    async def _whoami(self, ctx: Context) -> str:
        return json.dumps(self.identity.to_wire())

    def app(self) -> Starlette:
        """The ASGI application: `/mcp`, and `/version` with the padding that its `pad` asks for."""

        async def version(request: Request) -> Response:
            pad_chars = int(request.query_params.get("pad", "0"))
            self.padding.append(pad_chars)
            return JSONResponse({**self.identity.to_wire(), "padding": "x" * pad_chars})

        return self.server.streamable_http_app(
            stateless_http=True,
            max_request_body_size=32 * 1024 * 1024,
            transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
            custom_starlette_routes=[Route("/version", version)],
        )

    async def serve_bytes(self, stream: ByteStream) -> None:
        """Serve one byte stream until its end."""
        self.connections += 1
        to_server, read = anyio.create_memory_object_stream[SessionMessage | Exception](16)
        write, from_server = anyio.create_memory_object_stream[SessionMessage](16)

        async def receive() -> None:
            splitter = LineSplitter()
            with to_server, suppress(anyio.BrokenResourceError):
                async for data in stream:
                    for line in splitter.feed(data):
                        await to_server.send(SessionMessage(decode(line)))

        async def send() -> None:
            with suppress(anyio.BrokenResourceError):
                async for item in from_server:
                    await stream.send(encode(item.message))

        async with stream, anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            tasks.start_soon(send)
            with read, write, from_server:
                await self.server.run(read, write, self.server.create_initialization_options())
                tasks.cancel_scope.cancel()

    async def serve_stdio(self) -> None:
        async with stdio_server() as (read, write):
            await self.server.run(read, write, self.server.create_initialization_options())


@asynccontextmanager
async def relayed(
    serve: Callable[[ByteStream], Awaitable[None]], folder: Path
) -> AsyncIterator[list[str]]:
    """Serve byte streams on a Unix socket; yields a command whose stdio leads there."""
    path = folder / "agent.sock"
    async with (
        await anyio.create_unix_listener(path) as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, serve)
        yield [sys.executable, "-I", "-S", str(RELAY), str(path)]
        tasks.cancel_scope.cancel()
    path.unlink(missing_ok=True)


def text_of(result: types.CallToolResult) -> str:
    """The one text that a tool's result holds."""
    (content,) = result.content
    assert isinstance(content, types.TextContent)
    return content.text


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another task or process will do, where there is no event to wait for."""
    with anyio.fail_after(20):
        while not condition():
            await anyio.sleep(0.005)


def children() -> set[int]:
    """Process ids of our children that are still there."""
    return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


def connections_to(port: int) -> list[int]:
    """Our connections to a port of this machine, half-closed ones included."""
    found = []
    for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[2] == f"0100007F:{port:04X}" and fields[3] in ("01", "02", "04", "08", "09"):
            found.append(int(fields[9]))
    return found


def listen(host: str, port: int = 0, backlog: int = 128) -> socket.socket:
    """A TCP socket on a loopback address, at a free port if none is given."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol named: asyncio sets TCP_NODELAY on no other, and each answer takes 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind((host, port))
    listener.listen(backlog)
    return listener


@asynccontextmanager
async def speaking(handle: Callable[[ByteStream], Awaitable[None]]) -> AsyncIterator[Target]:
    """A server that speaks whatever it likes over TCP."""

    async def serve(stream: ByteStream) -> None:
        async with stream:
            await handle(stream)

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(SocketAttribute.local_port)
        yield Target(node="a", addresses=("127.0.0.1",), port=port)
        tasks.cancel_scope.cancel()


async def reset(stream: ByteStream) -> None:
    """Take a request, and have what closes the connection now cut it."""
    await stream.receive()
    raw = stream.extra(SocketAttribute.raw_socket)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@asynccontextmanager
async def swallowing() -> AsyncIterator[int]:
    """A port of 127.0.0.1 that answers nothing, as behind a firewall that drops packets."""
    async with AsyncExitStack() as stack:
        hole = stack.enter_context(closing(listen("127.0.0.1", backlog=0)))
        host, port = hole.getsockname()
        with anyio.move_on_after(0.5):  # fill the backlog: what comes now gets no answer
            while True:
                await stack.enter_async_context(await anyio.connect_tcp(host, port))
        yield port


@asynccontextmanager
async def serve_http(
    app: Any, host: str = "127.0.0.1", port: int = 0, **config: Any
) -> AsyncIterator[int]:
    """Serve an ASGI application on a real socket; yields the port."""
    listener = listen(host, port)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="critical",
            access_log=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=1,
            **config,
        )
    )
    # Its own handling would take over the signals of the test run.
    server.capture_signals = nullcontext
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, [listener])
        while not server.started:
            await anyio.sleep(0.005)
        yield listener.getsockname()[1]
        server.should_exit = True


async def _main(kind: str, host: str = "127.0.0.1") -> None:
    peer = Peer(os.environ.get("PEER_NODE", "peer-1"))
    if kind == "stdio":
        await peer.serve_stdio()
    else:
        async with serve_http(peer.app(), host) as port:
            print(port, flush=True)
            await anyio.sleep_forever()


if __name__ == "__main__":
    anyio.run(_main, *sys.argv[1:])
