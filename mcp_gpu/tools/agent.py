"""The tools of an agent. The module of each is imported at its first call: a start has no use for
it, nor for what it imports."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mcp_gpu.registry import Answer, Call, Makers, Tool
from mcp_gpu.telemetry.tracing import note

if TYPE_CHECKING:
    from mcp_gpu.gpu.collector import Collector
    from mcp_gpu.gpu.recorder.recorder import Recorder
    from mcp_gpu.gpu.simulator import Node
    from mcp_gpu.node.holdings import Holding
    from mcp_gpu.node.occupants import Occupants
    from mcp_gpu.node.sight import Lookout
    from mcp_gpu.node.watch import XidWatch

__all__ = ["LISTING", "Sources", "makers"]

LISTING: Final = Path(__file__).with_name("agent.json")
"""What clients are shown of them; `make test ARGS=--update-golden` writes it."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What the tools of one node answer from."""

    node: str
    collector: Collector
    recorder: Recorder
    watch: XidWatch
    lookout: Lookout
    attribution: Holding
    occupants: Occupants
    simulated: Node | None
    """The node, where it is none of metal."""
    expected_gpus: int | None
    """How many GPUs the node should have, where somebody has said so."""


def makers(sources: Sources) -> Makers:
    """What makes the tools over one node, by name."""

    def describe() -> Tool[Any]:
        from mcp_gpu.node import surroundings
        from mcp_gpu.tools.node import agent_tool

        look = surroundings.look
        if sources.simulated is not None:
            look = partial(surroundings.simulated, sources.simulated)
        return agent_tool(
            sources.node,
            sources.collector,
            sources.watch,
            sources.lookout.sight,
            look,
            expected_gpus=sources.expected_gpus,
        )

    def health() -> Tool[Any]:
        from mcp_gpu.tools.health import agent_tool

        return agent_tool(
            sources.node,
            sources.collector,
            sources.watch,
            sources.lookout.sight,
            expected_gpus=sources.expected_gpus,
        )

    def inventory() -> Tool[Any]:
        from mcp_gpu.tools.inventory import agent_tool

        return agent_tool(sources.node, sources.collector)

    def xids() -> Tool[Any]:
        from mcp_gpu.tools.xids import agent_tool

        return agent_tool(sources.node, sources.collector, sources.watch)

    def allocation() -> Tool[Any]:
        from mcp_gpu.node.holdings import Attribution
        from mcp_gpu.tools.allocation import agent_tool
        from mcp_gpu.tools.processes import seen

        # No kubelet has given simulated GPUs to the pods of invented processes.
        invented = sources.simulated is not None and isinstance(sources.attribution, Attribution)
        look = None if invented else seen(sources.collector, sources.occupants)
        return agent_tool(
            sources.node,
            sources.collector,
            sources.attribution,
            processes=look,
            recorder=sources.recorder,
        )

    def processes() -> Tool[Any]:
        from mcp_gpu.tools.processes import agent_tool

        return agent_tool(
            sources.node, sources.collector, sources.occupants, sources.attribution.holdings
        )

    def timeline() -> Tool[Any]:
        from mcp_gpu.tools.timeline import agent_tool

        return agent_tool(sources.node, sources.collector, sources.recorder, sources.watch)

    def topology() -> Tool[Any]:
        from mcp_gpu.tools.topology import agent_tool

        return agent_tool(sources.node, sources.collector)

    def explain() -> Tool[Any]:
        from mcp_gpu.tools.explain_xid import explain_tool

        return explain_tool()

    makers = {
        "analyze_xid_errors": xids,
        "describe_gpu_node": describe,
        "explain_xid": explain,
        "get_gpu_health": health,
        "get_gpu_inventory": inventory,
        "get_gpu_processes": processes,
        "get_gpu_timeline": timeline,
        "get_nvlink_topology": topology,
        "get_pod_gpu_allocation": allocation,
    }
    return {
        name: make if make is explain else partial(_aged, make, sources.collector)
        for name, make in makers.items()
    }


def _aged(make: Callable[[], Tool[Any]], collector: Collector) -> Tool[Any]:
    """A tool that answers from the collector's snapshot, and says in its trace how old that is."""
    tool = make()

    async def run(arguments: Any, call: Call) -> Answer:
        snapshot = collector.snapshot
        note(snapshot_state=snapshot.state)
        if snapshot.fast_at is not None:
            age_seconds = max(time.time() - snapshot.fast_at, 0.0)
            note(snapshot_age_seconds=round(age_seconds, 3))
        return await tool.run(arguments, call)

    return replace(tool, run=run)
