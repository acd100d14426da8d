"""What `describe_gpu_node` of a gateway answers, on the wire."""

from __future__ import annotations

from pydantic import Field

from mcp_gpu.fleet.model import NodeFailure
from mcp_gpu.gpu.health.model import Verdict
from mcp_gpu.gpu.wire import Wire
from mcp_gpu.tools.node_model import NodeDescription
from mcp_gpu.workloads.counts.model import Count, Disagreement
from mcp_gpu.workloads.nodes import ClusterNode, NodeEvent
from mcp_gpu.workloads.reads import Gap
from mcp_gpu.workloads.slices import SlicePool

__all__ = ["Allocated", "FleetNodeDescription", "Reach"]


class Allocated(Wire):
    """What pods hold of the node."""

    resources: dict[str, int] = Field(
        description="Resource of a device plugin, or driver of DRA, to devices held."
    )
    guess: bool = Field(
        description="True: by what pods ask for, and not by what the kubelet has given them."
    )
    source: str = Field(description="Who says so.")
    pods: tuple[str, ...] = Field(description="Those that hold some, as namespace/name.")
    pods_omitted: int


class Reach(Wire):
    """How the gateway reaches the node's agent."""

    via: str | None = Field(description="Path that the answer took; null: there is none.")
    milliseconds: float | None = Field(description="Until the answer.")
    passed_over: dict[str, str] = Field(description="Better path to why it was not taken.")
    failure: NodeFailure | None = Field(description="Why the agent has not answered.")


class FleetNodeDescription(Wire):
    """One node by its agent and by Kubernetes. A null has its reason in `unavailable`."""

    node: str
    simulated: bool = Field(description="True: no real hardware stands behind the GPUs.")
    verdict: Verdict = Field(description="Of the GPUs' health; unknown without the agent.")
    counts: tuple[Count, ...] = Field(description="Everybody who counts GPUs.")
    disagreements: tuple[Disagreement, ...] = Field(
        description="Counts that cannot be right at once, each with cause, evidence and fix."
    )
    reach: Reach
    agent: NodeDescription | None = Field(description="What the node's agent says.")
    kubernetes: ClusterNode | None = Field(description="The node object.")
    allocated: Allocated | None
    slices: tuple[SlicePool, ...] | None = Field(description="ResourceSlices, by pool.")
    events: tuple[NodeEvent, ...] | None = Field(description="Of the last hour, latest first.")
    gaps: tuple[Gap, ...] = Field(description="What Kubernetes could not be asked, and the right.")
    unavailable: dict[str, str]
