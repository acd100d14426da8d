"""What `describe_gpu_node` of an agent answers, on the wire."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from mcp_gpu.gpu.health.model import Finding, Severity, Verdict
from mcp_gpu.gpu.model import Gpu, GpuState, SnapshotState
from mcp_gpu.gpu.wire import Wire
from mcp_gpu.gpu.xid.report import Time
from mcp_gpu.node.sight import Sight
from mcp_gpu.node.surroundings import Surroundings
from mcp_gpu.tools.health_model import NodeHealth, Verdicts
from mcp_gpu.tools.spans import clipped
from mcp_gpu.tools.xids_model import NodeXids

__all__ = ["NAME", "XIDS", "NodeDescription", "NodeGpu", "NodeVerdict", "RecentXid", "RecentXids"]

NAME: Final = "describe_gpu_node"

FINDINGS: Final = 8
EVIDENCE: Final = 3
"""Of one finding."""

XIDS: Final = 8
"""Groups of Xids."""

MISSED: Final = 8
TEXT_CHARS: Final = 300
"""Of an explanation."""


class NodeGpu(Wire):
    """One GPU, in what is counted by."""

    index: int
    name: str | None
    uuid: str | None
    pci_bus_id: str | None
    state: GpuState
    verdict: Verdict
    mig: bool | None = Field(description="Whether MIG is on; null: unknown, or there is none.")
    mig_profiles: dict[str, int] | None = Field(
        description="Profile to how many instances of it; null: they cannot all be listed."
    )
    virtualization: str | None

    @classmethod
    def of(cls, gpu: Gpu, verdict: Verdict) -> NodeGpu:
        """Of a GPU's readings."""
        profiles: dict[str, int] = {}
        for device in gpu.mig_devices:
            name = device.profile or "unknown"
            profiles[name] = profiles.get(name, 0) + 1
        return cls(
            index=gpu.index,
            name=gpu.name,
            uuid=gpu.uuid,
            pci_bus_id=gpu.pci_bus_id,
            state=gpu.state,
            verdict=verdict,
            mig=gpu.mig_mode_current,
            mig_profiles=None if "mig_devices" in gpu.unavailable else profiles,
            virtualization=gpu.virtualization_mode,
        )


class NodeVerdict(Wire):
    """What `get_gpu_health` says of the node, in short."""

    verdict: Verdict
    gpus_by_verdict: Verdicts
    findings: tuple[Finding, ...] = Field(description="The worst, warnings at least.")
    findings_omitted: int
    not_checked: int = Field(description="Checks that could not be made.")

    @classmethod
    def of(cls, health: NodeHealth) -> NodeVerdict:
        """The worst of it."""
        told = [
            each.model_copy(update={"evidence": each.evidence[:EVIDENCE]})
            for each in health.findings[:FINDINGS]
        ]
        left = len(health.findings) - len(told) + health.findings_omitted
        return cls(
            verdict=health.verdict,
            gpus_by_verdict=health.gpus_by_verdict,
            findings=tuple(told),
            findings_omitted=left,
            not_checked=len(health.not_checked),
        )


class RecentXid(Wire):
    """All Xids of one code on one device."""

    device: str
    gpu_index: int | None
    kind: str
    code: int
    name: str
    count: int
    last: Time
    severity: Severity
    state: str
    action: str
    explanation: str


class RecentXids(Wire):
    """What `analyze_xid_errors` says of the node, in short."""

    since: str
    xids: int
    groups: tuple[RecentXid, ...] = Field(description="The rare and heavy first.")
    groups_omitted: int
    blind: bool = Field(description="True: no source can be read, so that none means nothing.")
    missed: tuple[str, ...] = Field(description="What Xids there may have been besides.")

    @classmethod
    def of(cls, xids: NodeXids) -> RecentXids:
        """Of an analysis with so many groups as are told."""
        return cls(
            since=xids.since,
            xids=xids.xids,
            groups=tuple(
                RecentXid(
                    **{name: getattr(each, name) for name in RecentXid.model_fields}
                    | {"explanation": clipped(each.explanation, TEXT_CHARS)}
                )
                for each in xids.groups
            ),
            groups_omitted=xids.groups_omitted,
            blind=xids.blind,
            missed=tuple(clipped(each, TEXT_CHARS) for each in xids.missed[:MISSED]),
        )


class NodeDescription(Wire):
    """One node as its own agent sees it."""

    node: str
    simulated: bool = Field(description="True: no real hardware stands behind this.")
    state: SnapshotState = Field(description="Of NVML, as in `get_gpu_inventory`.")
    message: str | None = Field(description="Why GPUs cannot be read, and what to do.")
    surroundings: Surroundings
    booted_at: Time | None = Field(description="In UTC.")
    uptime_seconds: float | None
    driver_version: str | None
    nvml_version: str | None
    cuda_version: str | None = Field(description="Newest CUDA that the driver supports.")
    gpu_count: int | None = Field(description="As NVML counts now; null if it cannot be asked.")
    gpu_count_most: int | None = Field(description="Most counted since the agent started.")
    gpu_count_wanted: int | None = Field(
        description="How many there should be, where the agent was told (--expected-gpus)."
    )
    gpus: tuple[NodeGpu, ...]
    health: NodeVerdict
    xids: RecentXids
    sight: Sight
    age_seconds: float | None = Field(description="Age of the readings.")

    @property
    def models(self) -> dict[str, int]:
        """Name of a board to how many there are."""
        found: dict[str, int] = {}
        for gpu in self.gpus:
            found[gpu.name or "unknown"] = found.get(gpu.name or "unknown", 0) + 1
        return found
