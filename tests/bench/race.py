"""What choosing between paths costs where nothing is wrong: against HTTP as the only one."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from pathlib import Path

from bench.calls import TOOL, caller
from bench.figures import Section, Variant, interleaved, medians, rounds_of
from bench.processes import PROGRAM, child, listening_port
from mcp_gpu.gateway import open_fleet
from mcp_gpu.settings.fleet import FleetSettings
from mcp_gpu.tools.inventory import NodeInventory
from support.cluster import Cluster

__all__ = ["overhead"]

OVERHEAD = 1.1
"""The limit of acceptance."""


async def overhead(cluster: Cluster, rounds: int, routers: int) -> Section:
    """The default order, with a stream to every agent at hand, against `--transports http`."""
    section = Section(f"{len(cluster.agents)} healthy nodes: every path allowed, or HTTP alone")
    arguments = cluster.gateway.arguments
    agents_file = Path(arguments[arguments.index("--agents-file") + 1])
    cold = await _cold(agents_file, len(cluster.agents), routers)
    section.add(f"first call of a router, HTTP alone, median of {routers}", cold["http"], "ms")
    section.add("first call of a router, every path", cold["every"], "ms")
    section.add("first call, every path / HTTP", cold["every"] / cold["http"], "x", OVERHEAD)
    warm = await _warm(agents_file, cluster, rounds)
    section.add(f"warm call of a gateway, HTTP alone, median of {rounds}", warm["http"], "ms")
    section.add("warm call of a gateway, every path", warm["every"], "ms")
    section.add("warm call, every path / HTTP", warm["every"] / warm["http"], "x", OVERHEAD)
    return section


async def _cold(agents_file: Path, count: int, routers: int) -> dict[str, float]:
    """Milliseconds of the first call, each of a router of its own in this process."""
    settings = {
        "every": FleetSettings(agents_file=agents_file),
        "http": FleetSettings(agents_file=agents_file, transports=("http",)),
    }
    taken: dict[str, list[float]] = {name: [] for name in settings}
    for number, names in enumerate(rounds_of(list(settings), routers + 1)):
        for name in names:
            async with open_fleet(settings[name]) as fleet:
                begun = time.perf_counter()
                found = await fleet.router.fan_out(TOOL, {"detail": "summary"}, NodeInventory)
                elapsed_ms = (time.perf_counter() - begun) * 1000
            if len(found.answers) != count:
                raise RuntimeError(f"of {count} nodes some failed: {found.failures}")
            if number:
                taken[name].append(elapsed_ms)
    return medians(taken)


async def _warm(agents_file: Path, cluster: Cluster, rounds: int) -> dict[str, float]:
    """Milliseconds of a call through gateway processes."""
    flags = ["--agents-file", str(agents_file), "--transports", "http", "--http-port", "0"]
    async with AsyncExitStack() as stack:
        fixed = stack.enter_context(child([*PROGRAM, "gateway", *flags]))
        urls = {
            "every": f"{cluster.gateway.url}/mcp",
            "http": f"http://127.0.0.1:{listening_port(fixed)}/mcp",
        }
        variants: dict[str, Variant] = {
            name: await stack.enter_async_context(caller(url)) for name, url in urls.items()
        }
        return medians(await interleaved(variants, rounds))
