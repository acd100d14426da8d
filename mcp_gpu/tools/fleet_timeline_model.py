"""What `get_gpu_timeline` of a gateway answers, on the wire."""

from __future__ import annotations

from pydantic import Field

from mcp_gpu.tools.fleet_answer import FleetAnswer
from mcp_gpu.tools.timeline_model import NodeTimeline

__all__ = ["FleetNodeTimeline", "FleetTimeline"]


class FleetNodeTimeline(NodeTimeline):
    """One node's timeline and how it was had."""

    via: str = Field(description="Path the answer took: http, command, ...")


class FleetTimeline(FleetAnswer):
    """What the GPUs of the fleet have done."""

    nodes_unchanged: int = Field(
        description="Nodes that answered where nothing changed by as much as is worth telling."
    )
    nodes_recorded_late: int = Field(
        description="Nodes that answered whose readings begin within this stretch: what they did "
        "before is unknown."
    )
    nodes: tuple[FleetNodeTimeline, ...] = Field(
        description="The node that was asked for; else those where something changed, most first."
    )
