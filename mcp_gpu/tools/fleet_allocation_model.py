"""What `get_pod_gpu_allocation` of a gateway answers, on the wire."""

from __future__ import annotations

from pydantic import Field

from mcp_gpu.gpu.wire import Wire
from mcp_gpu.tools.allocation_model import AllocationTotals, NodeAllocation, PodAllocation
from mcp_gpu.tools.fleet_answer import FleetAnswer
from mcp_gpu.workloads.reads import Gap

__all__ = ["FleetAllocation", "FleetNodeAllocation", "FleetPod", "Unattributed"]


class FleetPod(PodAllocation):
    """What one pod holds, and what Kubernetes says of it."""

    phase: str | None = Field(
        default=None, description="gone: Kubernetes has no such pod on the node. Null: not known."
    )
    owner: str | None = Field(
        default=None, description="What controls it, as Job/train-7; empty: nothing; null: unknown."
    )
    guess: bool = Field(
        default=False,
        description="True: nobody could say what it holds; this is what it asks for.",
    )


class FleetNodeAllocation(NodeAllocation):
    """One node's, and how it was had."""

    via: str = Field(description="Path the answer took: http, command, ...")
    terminated: int = Field(description="Pods left out that the kubelet lists and that are over.")
    pods: tuple[FleetPod, ...]


class Unattributed(Wire):
    """Nodes that cannot say who holds their GPUs for the same reason."""

    why: str
    nodes: int
    names: str = Field(description="Their names, as ranges.")


class FleetAllocation(FleetAnswer):
    """Which pods hold which GPUs of the fleet. Totals are over all nodes that answered."""

    totals: AllocationTotals = Field(description="Of all pods, whichever are asked for.")
    nodes_unattributed: int = Field(description="Nodes that cannot say who holds their GPUs.")
    unattributed: tuple[Unattributed, ...] = Field(
        description="Those nodes by reason, most nodes first; whatever page this is."
    )
    unattributed_omitted: int = Field(description="Further reasons.")
    gaps: tuple[Gap, ...] = Field(description="What could not be read of Kubernetes.")
    gaps_omitted: int
    nodes: tuple[FleetNodeAllocation, ...] = Field(
        description="With idle allocations or strays first, then those that cannot say, then by "
        "name. Those without a pod that was asked for are left out. Without nodes, pod, namespace "
        "or detail full, of the GPUs only those that are idle or not in order are told."
    )
