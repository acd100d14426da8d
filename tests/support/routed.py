"""Agents in this process behind paths that can be cut, and a router over them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel

from mcp_gpu.fleet.discovery.static import StaticDiscovery
from mcp_gpu.fleet.reachability import PathState, Reachability
from mcp_gpu.fleet.router import FanOut, Router
from mcp_gpu.tools.inventory import NAME, NodeInventory
from support.fleet import Agent, Path, inventory
from transports.base import Target

PROBE_SECONDS = 0.3
"""For a probe over HTTP; a healthy one on a busy machine takes 50 ms."""


class Fleet:
    """Agents by the key or node of their targets, two paths to each, and a router over them."""

    def __init__(
        self, agents: dict[str, Agent], known: Sequence[Target] | None = None, **settings: Any
    ) -> None:
        self.agents = agents
        self.http = Path("http", agents)
        self.stream = Path("command", agents)
        self.begun = self.http.begun = self.stream.begun
        """Path and target of each probe, in order."""
        self.now = 0.0
        self.targets = list(known or [Target(node=key) for key in agents])
        self.reachability = Reachability(
            [self.http, self.stream],
            **{
                "probe_timeout_seconds": {"http": PROBE_SECONDS},
                "default_probe_timeout_seconds": 2.0,
                "ttl_seconds": 60,
                "clock": lambda: self.now,
                "jitter": lambda most: most,
            }
            | settings,
        )
        self.discovery = StaticDiscovery(self.targets)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for each in (self.http, self.stream, self.reachability):
                await stack.enter_async_context(each)
            yield

    def router(self, **settings: Any) -> Router:
        settings = {"node_deadline_seconds": 5.0, "call_deadline_seconds": 10.0} | settings
        return Router(self.discovery, self.reachability, **settings)

    async def ask(self, *nodes: str, **settings: Any) -> FanOut[NodeInventory]:
        with anyio.fail_after(20):
            return await self.router(**settings).fan_out(
                NAME, {"detail": "summary"}, NodeInventory, nodes=nodes or None
            )

    def state(self, node: str) -> dict[str, PathState]:
        """Each path to the first agent of that node."""
        target = next(t for t in self.targets if node in (t.node, t.key))
        return {path.via: path for path in self.reachability.state(target)}

    def tried(self, target: str) -> list[str]:
        """The paths over which that target was probed, in order."""
        return [via for via, of in self.begun if of == target]

    def statuses(self, node: str) -> dict[str, str]:
        return {via: path.status for via, path in self.state(node).items()}


@asynccontextmanager
async def running(*nodes: str, **settings: Any) -> AsyncIterator[Fleet]:
    fleet = Fleet(
        {node: Agent(node, inventory(node)) for node in nodes or ("a", "b", "c")}, **settings
    )
    async with fleet.open():
        yield fleet


async def turns(count: int) -> None:
    """Let everybody else have so many turns of the event loop."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


def ways(found: FanOut[NodeInventory]) -> dict[str, str]:
    return {answer.node: answer.via for answer in found.answers}


def reasons(found: FanOut[NodeInventory]) -> dict[str, str]:
    return {failure.node: failure.reason for failure in found.failures}
