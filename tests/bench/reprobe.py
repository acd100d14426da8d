"""What a gateway sends after dead paths while another one serves: each try is a packet that a
broken network drops, and a log line at whoever drops it."""

from __future__ import annotations

import time
from functools import partial

import anyio
import anyio.to_thread

from bench.farm import Farm
from bench.figures import Section
from bench.recording import uid_of
from bench.scale import ask, gateway_over, healthy_agents
from mcp_gpu.settings.fleet import FleetSettings
from transports.base import Target, Transport
from transports.http import HttpTransport
from transports.memory import MemoryTransport

__all__ = ["traffic"]

CALL_EVERY_SECONDS = 10.0
"""A client that watches the fleet."""


async def traffic(farm: Farm, window_seconds: float) -> Section:
    """Connections to the silent ports of a farm, each the preferred path to an agent that is
    served from memory: while the first call finds that out, and then for a time."""
    agents = healthy_agents()[: len(farm.silent)]
    targets = [
        Target(node=agent.node, uid=uid_of(number), addresses=("127.0.0.1",), port=port)
        for number, (agent, port) in enumerate(zip(agents, farm.silent, strict=True))
    ]
    section = Section(f"{len(agents):,} agents, HTTP silent, served over a second path")
    knocks = partial(anyio.to_thread.run_sync, farm.knocks)
    servers = {agent.node: agent.server for agent in agents}
    async with HttpTransport() as http, MemoryTransport(servers) as memory:
        timeout_seconds = FleetSettings().probe_timeout_seconds
        transports: list[Transport] = [http, memory]
        async with gateway_over(targets, transports, http_probe_seconds=timeout_seconds) as tool:
            begun = time.monotonic()
            await ask(tool, len(agents))
            section.add("first call", (time.monotonic() - begun) * 1000, "ms")
            found = await knocks()
            section.add("connections tried by it", found, "")
            begun = time.monotonic()
            taken = []
            while (elapsed := time.monotonic() - begun) < window_seconds:
                called = time.monotonic()
                await ask(tool, len(agents))
                taken.append((time.monotonic() - called) * 1000)
                await anyio.sleep(min(CALL_EVERY_SECONDS, max(window_seconds - elapsed, 0.0)))
            tried = await knocks() - found
            minutes = (time.monotonic() - begun) / 60
    section.add(f"later calls, one every {CALL_EVERY_SECONDS:.0f} s, the slowest", max(taken), "ms")
    section.add(f"connections tried a minute, over {60 * minutes:.0f} s", tried / minutes, "")
    return section
