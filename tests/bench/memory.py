"""What an agent that nobody calls keeps in memory, and what it computes all the same."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

from bench.figures import Section
from bench.processes import PROGRAM, Child, Load, ask_http, child, listening_port
from support.wire import call, request

__all__ = ["IdleAgents", "idle_agents"]

RESIDENT_MIB = 80.0
AT_REST_PERCENT = 1.0
"""Of one processor."""


@dataclass(frozen=True, slots=True)
class IdleAgents:
    """Agents that were asked once and then left alone."""

    simulated: Child
    bare: Child
    since: float
    spent_seconds: tuple[float, float]
    """Processor time until then."""

    async def weigh(self, at_least_seconds: float) -> Section:
        """Their memory and processor time, once they have idled for so long."""
        await anyio.sleep(max(self.since + at_least_seconds - time.monotonic(), 0.0))
        idle_seconds = time.monotonic() - self.since
        section = Section(f"an agent at rest, idle for {idle_seconds:.0f} s after two requests")
        for name, process, spent in (
            ("simulated 8xH100", self.simulated, self.spent_seconds[0]),
            ("this machine's own NVML or none", self.bare, self.spent_seconds[1]),
        ):
            share = 100 * (Load.of(process).cpu_seconds - spent) / idle_seconds
            section.add(f"processor time, of one, {name}", share, "%", AT_REST_PERCENT)
            sizes = _sizes_mib(process.pid)
            section.add(f"resident (RSS), {name}", sizes["Rss"], "MiB", RESIDENT_MIB)
            section.add(f"its own share (PSS), {name}", sizes["Pss"], "MiB")
            own = sizes["Private_Clean"] + sizes["Private_Dirty"]
            section.add(f"its alone (USS), {name}", own, "MiB")
        return section


@contextmanager
def idle_agents(fleet_file: Path, node: str, folder: Path) -> Iterator[IdleAgents]:
    """One agent on a simulated node, and one on what this machine has."""
    with ExitStack() as stack:
        processes = []
        for name, flags in (("simulated", ["--simulate", str(fleet_file)]), ("bare", [])):
            argv = [*PROGRAM, "agent", "--node-name", node, "--http-port", "0", *flags]
            argv += ["--socket", str(folder / f"{name}.sock")]
            process = stack.enter_context(child(argv))
            port = listening_port(process)
            # What is imported and compiled at the first call counts as idle memory too.
            ask_http(port, request("tools/list"))
            ask_http(port, call("get_gpu_inventory", detail="full"))
            processes.append(process)
        simulated, bare = processes
        spent = (Load.of(simulated).cpu_seconds, Load.of(bare).cpu_seconds)
        yield IdleAgents(simulated, bare, time.monotonic(), spent)


def _sizes_mib(pid: int) -> dict[str, float]:
    sizes: dict[str, float] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, size, _ = line.split()
        sizes[name.removesuffix(":")] = int(size) / 1024
    return sizes
