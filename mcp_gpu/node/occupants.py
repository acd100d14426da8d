"""Who is on this node's GPUs: NVML's processes, and whose they are. `Occupants`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from mcp_gpu.gpu.processes import Processes
from mcp_gpu.node.process_pods import PodProcess, Whose

if TYPE_CHECKING:  # a gateway runs where there is no NVML, and shares only the words
    from mcp_gpu.gpu.collector import Collector

__all__ = ["Occupancy", "Occupants"]

MAX_AGE_SECONDS: Final = 2.0
"""Readings so young serve several callers: each takes NVML some calls per GPU."""

READ_SECONDS: Final = 0.5
"""Longest wait for a reading. Then the last one is told with its age."""


@dataclass(frozen=True, slots=True)
class Occupancy:
    """All of them at one moment."""

    processes: Processes | None
    """None: they have never been read."""
    whose: Mapping[int, PodProcess] = field(default_factory=dict)
    """By pid; empty where pids mean nothing."""
    blind: str = ""
    """Why the host's processes cannot be seen; empty where they are."""


class Occupants:
    """Looks for whoever wants to know.

    Args:
        whose: what tells whose processes are.
    """

    def __init__(self, collector: Collector, whose: Whose) -> None:
        self._collector, self._whose = collector, whose

    async def look(self) -> Occupancy:
        """As of now, or as well as a second can tell. Never raises."""
        processes = await self._collector.processes(MAX_AGE_SECONDS, READ_SECONDS)
        blind = self._whose.blind()
        if processes is None or blind:
            # Whether a pid is of this namespace or the host's depends on the driver: whoever looked
            # it up might find a stranger.
            return Occupancy(processes, blind=blind)
        pids = {process.pid for gpu in processes.gpus for process in gpu.processes}
        return Occupancy(processes, await self._whose.look_up(pids, processes.read_at))
