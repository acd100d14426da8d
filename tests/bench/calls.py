"""What a warm call costs: through the gateway, and over each kind of path."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2

from bench.figures import Section, Variant, interleaved, medians
from bench.processes import PROGRAM, child, listening_port
from support.cluster import Cluster, Running
from support.wire import call, headers
from transports.base import Target
from transports.command import CommandTransport
from transports.http import HttpTransport
from transports.session import call_tool

__all__ = ["TOOL", "attach_command", "caller", "gateway", "paths"]

TOOL = "get_gpu_inventory"

EVENTS = "application/json, text/event-stream"
"""What an MCP client accepts. A call that reports no progress is answered with the former."""

RELAY = Path(__file__).with_name("relay.py")

CALL_SECONDS = 20.0

GATEWAY_TO_RELAY = 1.5
STREAM_TO_HTTP = 3.0


async def gateway(cluster: Cluster, rounds: int) -> Section:
    """The inventory of all nodes through the gateway, through a bare SDK relay, and unmerged."""
    section = Section(f"{len(cluster.agents)}-node warm inventory, median of {rounds} calls each")
    urls = [f"{agent.url}/mcp" for agent in cluster.agents.values()]
    async with AsyncExitStack() as stack:
        relay = stack.enter_context(child([sys.executable, str(RELAY), *urls]))
        relay_url = f"http://127.0.0.1:{listening_port(relay)}/mcp"
        gateway_url = f"{cluster.gateway.url}/mcp"
        callers = {
            url: await stack.enter_async_context(caller(url))
            for url in [gateway_url, relay_url, *urls]
        }

        async def summary(url: str) -> None:
            await callers[url](detail="summary")

        async def bare() -> None:
            async with anyio.create_task_group() as group:
                for url in urls:
                    group.start_soon(summary, url)

        async def merged(url: str, **arguments: Any) -> None:
            nodes = (await callers[url](**arguments))["nodes"]
            if {node["node"] for node in nodes} != cluster.agents.keys():
                raise RuntimeError(f"{url} answered for {len(nodes)} nodes")

        taken = await interleaved(
            {
                "gateway": lambda: merged(gateway_url),
                "relay": lambda: merged(relay_url, detail="summary"),
                "bare": bare,
            },
            rounds,
        )
    middle = medians(taken)
    section.add("through the mcp-gpu gateway process", middle["gateway"], "ms")
    section.add("through an empty SDK relay process", middle["relay"], "ms")
    section.add("the same requests sent bare, at once", middle["bare"], "ms")
    section.add("gateway / relay", middle["gateway"] / middle["relay"], "x", GATEWAY_TO_RELAY)
    section.add("gateway / bare", middle["gateway"] / middle["bare"], "x")
    return section


@asynccontextmanager
async def caller(url: str) -> AsyncIterator[Callable[..., Awaitable[dict[str, Any]]]]:
    """Takes arguments for the inventory and gives what the server there answers, over a
    connection that is kept."""
    async with httpx2.AsyncClient(trust_env=False, timeout=CALL_SECONDS) as client:

        async def ask(**arguments: Any) -> dict[str, Any]:
            message = call(TOOL, **arguments)
            answer = await client.post(url, json=message, headers=headers(message, EVENTS))
            answer.raise_for_status()
            found: dict[str, Any] = answer.json()["result"]["structuredContent"]
            return found

        yield ask


async def paths(cluster: Cluster, node: str, rounds: int) -> Section:
    """One agent's tool over its HTTP port, and over a warm stream through `mcp-gpu attach`."""
    section = Section(f"one agent, warm, median of {rounds} calls each")
    agent = cluster.agents[node]
    target = Target(
        node=node,
        addresses=("127.0.0.1",),
        port=agent.port,
        options={"command": {"argv": attach_command(agent)}},
    )
    async with HttpTransport() as http, CommandTransport() as command:

        def ask(transport: HttpTransport | CommandTransport, detail: str) -> Variant:
            async def run() -> None:
                result = await call_tool(
                    transport, target, TOOL, {"detail": detail}, timeout_seconds=CALL_SECONDS
                )
                assert not result.is_error

            return run

        for detail in ("summary", "full"):
            taken = await interleaved(
                {"http": ask(http, detail), "stream": ask(command, detail)}, rounds
            )
            middle = medians(taken)
            section.add(f"detail {detail}, over HTTP", middle["http"], "ms")
            section.add(f"detail {detail}, over a stream", middle["stream"], "ms")
            section.add(
                f"detail {detail}, stream / HTTP",
                middle["stream"] / middle["http"],
                "x",
                STREAM_TO_HTTP,
            )
    return section


def attach_command(agent: Running) -> list[str]:
    """The command that joins a caller to the agent."""
    socket_path = agent.arguments[agent.arguments.index("--socket") + 1]
    return [*PROGRAM, "attach", "--socket", socket_path, "--relay-only"]
