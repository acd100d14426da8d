"""What an agent that nobody calls keeps in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

from bench.figures import Section
from bench.processes import PROGRAM, Child, ask_http, child, listening_port
from support.wire import call, request

__all__ = ["IdleAgents", "idle_agents"]

RESIDENT_MIB = 80.0


@dataclass(frozen=True, slots=True)
class IdleAgents:
    """Agents that were asked once and then left alone."""

    simulated: Child
    bare: Child
    since: float

    async def weigh(self, at_least_seconds: float) -> Section:
        """Their memory, once they have idled for so long."""
        await anyio.sleep(max(self.since + at_least_seconds - time.monotonic(), 0.0))
        idle_seconds = time.monotonic() - self.since
        section = Section(f"agent memory, idle for {idle_seconds:.0f} s after two requests")
        for name, process in (
            ("simulated 8xH100", self.simulated),
            ("this machine's own NVML or none", self.bare),
        ):
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
        yield IdleAgents(processes[0], processes[1], time.monotonic())


def _sizes_mib(pid: int) -> dict[str, float]:
    sizes: dict[str, float] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, size, _ = line.split()
        sizes[name.removesuffix(":")] = int(size) / 1024
    return sizes
