"""What `get_pod_gpu_allocation` answers of one node, on the wire."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from mcp_gpu.gpu.model import GpuState
from mcp_gpu.gpu.wire import Wire
from mcp_gpu.node.holdings import Claim, Device, Source

__all__ = [
    "NAME",
    "AgentAllocation",
    "AllocatedGpu",
    "AllocatedMig",
    "AllocationTotals",
    "ContainerAllocation",
    "HeldClaim",
    "NodeAllocation",
    "PastHolder",
    "PodAllocation",
    "Stray",
]

NAME: Final = "get_pod_gpu_allocation"


class HeldClaim(Claim):
    """A device of a ResourceClaim, and the GPU that it is."""

    gpu_uuid: str | None = Field(
        default=None, description="Of the GPU, or of a MIG instance's parent."
    )
    gpu_index: int | None = None
    mig_uuid: str | None = None
    mig_profile: str | None = Field(default=None, description="Null: a whole GPU, or unknown.")
    admin: bool = Field(default=False, description="Access for monitoring, which holds nothing.")
    why: str = Field(default="", description="What of this is not known, and why.")


class ContainerAllocation(Wire):
    """What one container holds."""

    container: str
    devices: tuple[Device, ...] = Field(default=(), description="From a device plugin.")
    claims: tuple[HeldClaim, ...] = Field(default=(), description="By Dynamic Resource Allocation.")
    requested: dict[str, int] = Field(
        default_factory=dict, description="Of a guess: resource to how many it asks for."
    )


class PodAllocation(Wire):
    """What one pod holds."""

    namespace: str = Field(description="Empty where only the uid is known.")
    pod: str = Field(description="Name; empty where only the uid is known.")
    pod_uid: str | None
    containers: tuple[ContainerAllocation, ...]


class AllocatedMig(Wire):
    """One MIG instance. A null has its reason in `unavailable`."""

    uuid: str | None
    profile: str | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    quiet: bool | None = Field(description="No more memory used than the driver's own.")
    holders: int | None = Field(default=None, description="Containers that hold it.")
    idle: bool | None = Field(default=None, description="Held, and quiet.")
    free: bool | None = Field(default=None, description="Held by nobody.")
    unavailable: dict[str, str]


class AllocatedGpu(Wire):
    """One GPU, what it does now and who holds it. A null has its reason in `unavailable`."""

    index: int
    uuid: str | None
    name: str | None
    state: GpuState
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    utilization_percent: int | None
    quiet: bool | None = Field(
        description="Under 1 % busy, and no more memory used than the driver's own."
    )
    quiet_seconds: float | None = Field(
        description="How long it has been so at least; 0: as of now."
    )
    holders: int | None = Field(
        default=None, description="Containers that hold it or an instance of it."
    )
    shared: bool | None = Field(
        default=None, description="Held by several, or handed out as replicas."
    )
    idle: bool | None = Field(default=None, description="Held, and quiet.")
    free: bool | None = Field(
        default=None, description="In order, and held by nobody, nor any instance of it."
    )
    mig: tuple[AllocatedMig, ...]
    unavailable: dict[str, str]


class Stray(Wire):
    """A process on a GPU that its pod does not hold, or that is of no pod."""

    pid: int
    gpu_index: int
    gpu_uuid: str | None
    command: str
    memory_bytes: int | None
    pod_uid: str | None = Field(description="Null: a process of the node itself.")


class AllocationTotals(Wire):
    """GPUs, with MIG instances counted as their GPU."""

    pods: int
    gpus: int
    held: int
    idle: int = Field(description="Held, and quiet.")
    free: int
    unknown: int = Field(description="Of which it is not known whether they are held.")
    strays: int = Field(description="Processes outside of any allocation, as far as seen.")


class NodeAllocation(Wire):
    """Which pods hold which GPUs of one node."""

    node: str
    simulated: bool = Field(description="True: no real hardware stands behind the GPUs.")
    message: str | None = Field(description="Why GPUs cannot be read, and what to do.")
    source: Source = Field(
        description="Who says so: pod_resources: the kubelet; checkpoint: a file of its own, which "
        "knows pods by uid alone; simulated: the simulator, of pods that it made up; none: nobody, "
        "so that nothing is known of holders."
    )
    why: str = Field(description="What is missing of it, and why; empty: nothing is.")
    totals: AllocationTotals = Field(
        description="Of the node, whatever is listed and whichever pods are asked for."
    )
    pods: tuple[PodAllocation, ...]
    pods_omitted: int = Field(description="Left out for room.")
    gpus: tuple[AllocatedGpu, ...]
    strays: tuple[Stray, ...] = Field(
        description="Processes on GPUs outside of any allocation; see `unavailable`."
    )
    allocatable: dict[str, int] = Field(description="Resource to devices that pods can be given.")
    age_seconds: float | None = Field(description="Age of the GPUs' readings.")
    holders_age_seconds: float | None = Field(description="Age of what is known of holders.")
    unavailable: dict[str, str]


class PastHolder(Wire):
    """A container that has held one device, as the agent's recorder remembers."""

    namespace: str = Field(description="Empty where only the pod's uid is known.")
    pod: str
    pod_uid: str | None
    container: str
    gpu_uuid: str | None
    gpu_index: int | None = Field(description="Where the GPU was then.")
    mig: str = Field(description="Profile or UUID of the instance; empty: a whole GPU.")
    shared: bool = Field(description="A replica of a GPU that is handed out several times.")
    since: str = Field(description="When it was seen first, in UTC; it may have begun earlier.")
    until: str = Field(description="When it was seen last, to some ten seconds.")


class AgentAllocation(NodeAllocation):
    """The same as an agent tells it, with who held them before."""

    past: tuple[PastHolder, ...] = Field(
        default=(), description="Where it was asked for; the latest first."
    )
    past_omitted: int = Field(default=0, description="Older ones, left out for room.")
