"""How the time of a fan-out grows with the number of agents, all of them in this process."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import anyio
from mcp.server.lowlevel import Server

from bench.figures import Section, Variant, interleaved, medians
from mcp_gpu.fleet.discovery.static import StaticDiscovery
from mcp_gpu.fleet.reachability import Reachability
from mcp_gpu.fleet.router import Router
from mcp_gpu.registry import Call, Tool
from mcp_gpu.serving.server import HttpEndpoint, Listening, serve
from mcp_gpu.telemetry.calls import Calls
from mcp_gpu.tools.fleet_inventory import FleetInventory, GatewayArguments, gateway_tool
from support.fleet import Agent, inventory
from transports.base import Identity, Target, Transport
from transports.http import HttpTransport
from transports.memory import MemoryTransport

__all__ = ["ask", "gateway_over", "healthy_agents", "in_memory", "over_sockets"]

MEMORY_AGENTS = (100, 300, 1000)
SOCKET_AGENTS = (100, 300)

GROWTH = 1.5
"""Linear is 1: ten times the agents take ten times as long. The rest is for what a processor's
caches no longer hold of a thousand agents that one process simulates; anything that looks at
every agent for every agent would show as 10."""

FAN_OUT_SECONDS = 60.0
"""For the whole fleet, and so for every node of it: this measures time, it does not bound it."""


async def in_memory(agents: Sequence[Agent], rounds: int) -> Section:
    """Fan-outs over memory streams: router, sessions, validation and merging, no network."""
    section = Section(f"whole fan-out, agents in this process, median of {rounds} each")
    async with MemoryTransport({agent.node: agent.server for agent in agents}) as transport:
        targets = [Target(node=agent.node) for agent in agents]
        await _measure(section, "memory streams", MEMORY_AGENTS, targets, transport, rounds)
    return section


async def over_sockets(agents: Sequence[Agent], rounds: int) -> Section:
    """Fan-outs over real HTTP sockets, the servers in this process too."""
    section = Section(f"the same over HTTP sockets of this process, median of {rounds} each")
    async with _listening(agents[: max(SOCKET_AGENTS)]) as targets, HttpTransport() as transport:
        await _measure(section, "HTTP sockets", SOCKET_AGENTS, targets, transport, rounds)
    return section


async def _measure(
    section: Section,
    name: str,
    sizes: Sequence[int],
    targets: Sequence[Target],
    transport: Transport,
    rounds: int,
) -> None:
    async with AsyncExitStack() as stack:
        variants: dict[str, Variant] = {}
        for size in sizes:
            over = gateway_over(targets[:size], [transport])
            variants[str(size)] = partial(ask, await stack.enter_async_context(over), size)
        middle = medians(await interleaved(variants, rounds))
    for size in sizes:
        section.add(f"{size:,} agents, {name}", middle[str(size)], "ms")
    few, many = min(sizes), max(sizes)
    growth = middle[str(many)] / middle[str(few)] / (many / few)
    section.add(f"time per agent, {many:,} / {few:,}", growth, "x", GROWTH)


async def ask(tool: Tool[GatewayArguments], count: int) -> None:
    """Call it in summary.

    Raises:
        RuntimeError: fewer agents have answered.
    """
    answer = await tool.run(GatewayArguments(), Call())
    assert isinstance(answer.data, FleetInventory)
    if answer.data.coverage.nodes_answered != count:
        raise RuntimeError(f"of {count} agents some failed: {answer.data.failures_by_reason}")


@asynccontextmanager
async def gateway_over(
    targets: Sequence[Target],
    transports: Sequence[Transport],
    *,
    http_probe_seconds: float = FAN_OUT_SECONDS,
) -> AsyncIterator[Tool[GatewayArguments]]:
    """The gateway's tool over these agents, with the program's own limit on concurrency."""
    reachability = Reachability(
        transports,
        probe_timeout_seconds={"http": http_probe_seconds},
        default_probe_timeout_seconds=FAN_OUT_SECONDS,
    )
    async with reachability:
        router = Router(
            StaticDiscovery(targets),
            reachability,
            node_deadline_seconds=FAN_OUT_SECONDS,
            call_deadline_seconds=FAN_OUT_SECONDS,
        )
        yield gateway_tool(router)


def healthy_agents() -> list[Agent]:
    """A thousand agents that answer at once, each for a healthy node of 8 H100."""
    names = (f"node-{number:04}" for number in range(max(MEMORY_AGENTS)))
    agents = [Agent(name, inventory(name)) for name in names]
    # A gateway has no thousand servers in its memory: the garbage collector's walks through
    # them (a third of the time at 1,000 agents) must not count as the fan-out's.
    gc.collect()
    gc.freeze()
    return agents


@dataclass(frozen=True, slots=True)
class _Served:
    """An agent as `serve` wants it."""

    agent: Agent
    calls: Calls = field(default_factory=Calls)

    @property
    def server(self) -> Server[Any]:
        return self.agent.server

    def identity(self) -> Identity:
        tools = {self.agent.tool: tuple(self.agent.arguments.model_fields)}
        return replace(self.agent.whoami(), tools=tools)

    def needs(self, method: str, params: Mapping[str, Any]) -> Iterable[str]:
        return ()

    def rights(
        self, method: str, params: Mapping[str, Any]
    ) -> Iterable[tuple[str, str, str, bool]]:
        return ()


@asynccontextmanager
async def _listening(agents: Sequence[Agent]) -> AsyncIterator[list[Target]]:
    """Every agent on a port of its own."""
    endpoint = HttpEndpoint(hosts=("127.0.0.1",), port=0)
    stop = anyio.Event()
    async with anyio.create_task_group() as group:
        targets = []
        for agent in agents:
            start = partial(serve, _Served(agent), http=endpoint, stop=stop, signals=False)
            listening: Listening = await group.start(start)
            (_, port), *_ = listening.http
            targets.append(Target(node=agent.node, addresses=("127.0.0.1",), port=port))
        yield targets
        stop.set()
