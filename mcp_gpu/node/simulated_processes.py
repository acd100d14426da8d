"""Whose the processes of a simulated node are: what its fleet file says in place of /proc."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from mcp_gpu.node.process_pods import PodProcess

if TYPE_CHECKING:  # 20 ms and 3 MiB that an agent on hardware need not pay
    from mcp_gpu.gpu.simulator import Node

__all__ = ["SimulatedProcesses"]


class SimulatedProcesses:
    """As `Whose`. The pids are invented: this machine's /proc is not asked about them."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def blind(self) -> str:
        """As `Whose`."""
        return "a simulated process namespace of its own" if self._node.hides_processes else ""

    async def look_up(self, pids: Iterable[int], read_at: float) -> Mapping[int, PodProcess]:
        """As `Whose`."""
        known = {process.pid: process for process in self._node.processes}
        found: dict[int, PodProcess] = {}
        for pid in pids:
            process = known.get(pid)
            if process is None:
                found[pid] = PodProcess(pid, why="the process has ended")
                continue
            found[pid] = PodProcess(
                pid,
                None if process.pod_uid is None else str(process.pod_uid),
                process.container_id,
                process.name,
                process.user_id,
                podless=process.pod_uid is None,
                why="the simulator does not tell it",
            )
        return found
