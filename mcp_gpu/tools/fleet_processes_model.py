"""What `get_gpu_processes` of a gateway answers, on the wire."""

from __future__ import annotations

from pydantic import Field

from mcp_gpu.tools.fleet_answer import FleetAnswer
from mcp_gpu.tools.processes_model import NodeProcesses

__all__ = ["FleetNodeProcesses", "FleetProcesses"]


class FleetNodeProcesses(NodeProcesses):
    """One node's processes and how they were had."""

    via: str = Field(description="Path the answer took: http, command, ...")


class FleetProcesses(FleetAnswer):
    """The processes on the GPUs of the fleet. Counts are over all nodes, whatever is listed."""

    nodes_by_state: dict[str, int] = Field(
        description="attention, unknown (a node that did not answer is), busy, idle."
    )
    processes_count: int = Field(description="Of nodes whose processes can be seen.")
    strays: int = Field(description="Outside of any allocation, of nodes where that is known.")
    unaccounted_memory_bytes: int = Field(
        description="Used beyond what processes hold, of GPUs where that is known."
    )
    nodes: tuple[FleetNodeProcesses, ...] = Field(
        description="What asks for a look first, then what cannot be seen, then by name. Idle "
        "nodes are counted, not listed, but for those in `nodes` of the call, or with detail full."
    )
