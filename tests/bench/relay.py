"""The least gateway that the SDK can be made into. Run with the agents' URLs, prints its port.

It knows no paths, no deadlines and no schema: each call of a tool is forwarded to every agent in
a session of its own, over one warm HTTP client, and the answers are put beside each other. The
sessions are pinned to 2026-07-28 and list no tools, so one call is one request an agent, as it
is for the gateway that is measured against it.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from typing import Any

import anyio
import httpx2
import uvicorn
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    DiscoverResult,
    ListToolsResult,
    PaginatedRequestParams,
    ServerCapabilities,
)
from mcp_types.version import LATEST_MODERN_VERSION

PINNED = DiscoverResult(
    supported_versions=[LATEST_MODERN_VERSION],
    capabilities=ServerCapabilities(),
    ttl_ms=0,
    cache_scope="public",
)


class _Session(ClientSession):
    async def validate_tool_result(self, name: str, result: CallToolResult) -> None:
        return None  # it would list the agent's tools


class Relay:
    """Forwards `tools/call` to every agent."""

    def __init__(self, client: httpx2.AsyncClient, agents: Sequence[str]) -> None:
        self._client = client
        self._agents = agents
        self.server: Server[Any] = Server(
            "relay",
            get_tool_input_schema=lambda name: {"type": "object"},
            on_list_tools=self._list,
            on_call_tool=self._call,
        )

    async def _list(
        self, context: ServerRequestContext[Any, Any], params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        return ListToolsResult(tools=[])

    async def _call(
        self, context: ServerRequestContext[Any, Any], params: CallToolRequestParams
    ) -> CallToolResult:
        answers: list[CallToolResult] = []

        async def ask(url: str) -> None:
            answers.append(await self._forward(url, params))

        async with anyio.create_task_group() as group:
            for url in self._agents:
                group.start_soon(ask, url)
        return CallToolResult(
            content=[block for answer in answers for block in answer.content],
            structured_content={"nodes": [answer.structured_content for answer in answers]},
        )

    async def _forward(self, url: str, params: CallToolRequestParams) -> CallToolResult:
        async with (
            streamable_http_client(
                url, http_client=self._client, terminate_on_close=False
            ) as streams,
            _Session(*streams) as session,
        ):
            session.adopt(PINNED)
            return await session.call_tool(params.name, params.arguments)


async def main(agents: Sequence[str]) -> None:
    # The protocol is named because asyncio turns Nagle's delay off only where it sees it.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        print(f"listening: http://127.0.0.1:{listener.getsockname()[1]}/mcp", file=sys.stderr)
        async with httpx2.AsyncClient(trust_env=False, timeout=30) as client:
            app = Relay(client, agents).server.streamable_http_app(stateless_http=True)
            config = uvicorn.Config(app, log_level="error", access_log=False)
            await uvicorn.Server(config).serve([listener])


if __name__ == "__main__":
    anyio.run(main, sys.argv[1:])
