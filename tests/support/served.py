"""One tool as a real MCP client meets it: of an agent on this machine, or of a gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
from mcp import Client

from mcp_gpu.fleet.discovery.static import StaticDiscovery
from mcp_gpu.fleet.reachability import Reachability
from mcp_gpu.fleet.router import Router
from mcp_gpu.gpu.collector import Collector
from mcp_gpu.gpu.nvml import Nvml
from mcp_gpu.gpu.simulator import Node, installed
from mcp_gpu.registry import Registry, Tool
from support.fleet import Agent, Path
from transports.base import Identity, Target

__all__ = ["agent", "gateway", "registry"]


def registry(tool: Tool[Any], node: str = "here", *others: Tool[Any]) -> Registry:
    """A server of this one tool, and others."""
    return Registry(
        name="mcp-gpu",
        version="0",
        instructions="",
        tools=[tool, *others],
        identity=lambda: Identity(name="mcp-gpu", version="0", node=node),
    )


@asynccontextmanager
async def agent(
    node: Node,
    make: Callable[[Collector], Tool[Any]],
    *,
    looked: bool = True,
    nvml: Callable[[], Nvml] = Nvml,
) -> AsyncIterator[Client]:
    """A client of an agent on this machine, once the agent has looked at it, or at once."""
    with installed(node):
        collector = Collector(nvml())
        collector.start()
        try:
            with anyio.fail_after(30):
                await collector.first(20 if looked else 0)
                served = registry(make(collector), node.name)
                async with Client(served.server, mode="2026-07-28") as client:
                    yield client
        finally:
            collector.stop()
            assert collector.join(10)


@asynccontextmanager
async def gateway(
    make: Callable[[Router], Tool[Any]],
    agents: Mapping[str, Agent],
    http: Path | None = None,
    *others: Path,
    deadlines_seconds: tuple[float, float] = (8.0, 20.0),
) -> AsyncIterator[Client]:
    """A client of a gateway over these agents.

    Args:
        deadlines_seconds: of a node and of a call. Many agents in this process need more.
    """
    paths = [http or Path("http", dict(agents)), *others]
    async with AsyncExitStack() as stack:
        for path in paths:
            await stack.enter_async_context(path)
        reachability = Reachability(paths, probe_timeout_seconds={"http": 5.0})
        await stack.enter_async_context(reachability)
        router = Router(
            StaticDiscovery([Target(node=node) for node in agents]),
            reachability,
            concurrency=256,
            node_deadline_seconds=deadlines_seconds[0],
            call_deadline_seconds=deadlines_seconds[1],
        )
        with anyio.fail_after(60):
            async with Client(registry(make(router)).server, mode="2026-07-28") as client:
                yield client
