"""What `get_nvlink_topology` answers of one node, on the wire."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from mcp_gpu.gpu.wire import Wire
from mcp_gpu.tools.health_readings import LinkReadings
from mcp_gpu.tools.inventory import MODELS, Name

__all__ = ["NAME", "FabricPlace", "NodeTopology", "PeerAccess", "TopologyAsymmetry", "TopologyGpu"]

NAME: Final = "get_nvlink_topology"


class TopologyAsymmetry(Wire):
    """Something that differs among GPUs that should be alike."""

    kind: Literal["links_down", "numa_side", "pcie_path", "fabric", "peer_access"]
    gpus: tuple[int, ...]
    text: str


class PeerAccess(Wire):
    """What pairs of GPUs may do with each other's memory: ok, or why not."""

    read: str | None
    write: str | None
    nvlink: str | None
    atomics: str | None
    pairs: int = Field(description="How many pairs of GPUs have just this.")
    which: tuple[tuple[int, int], ...] = Field(
        description="Those pairs, unless it is what most have."
    )


class FabricPlace(Wire):
    """Where in the NVLink fabric some GPUs of a node are."""

    gpus: tuple[int, ...]
    state: str | None = Field(description="Of their registration; null: it has none, or unread.")
    health: str | None
    cluster_uuid: str | None
    clique_id: int | None
    chassis_serial: str | None
    why: str = Field(description="Why there is no clique; empty where there is one.")


class TopologyGpu(Wire):
    """How one GPU is attached. A null has its reason in `unavailable`."""

    index: int
    uuid: str | None
    name: Name | None
    state: str
    pci_bus_id: str | None
    numa_node: int | None
    cpu_affinity: str | None = Field(description="CPUs of that node, as the kernel lists them.")
    nvlinks: int | None = Field(description="That the board has.")
    nvlinks_up: int | None
    nvlinks_down: dict[str, tuple[int, ...]] = Field(
        description="State to the links that are in it and not up."
    )
    switched: bool | None = Field(
        description="Whether its NVLinks end at NVSwitches; null: it has none, or nobody knows."
    )
    nvlink_transmit_bytes_per_second: int | None = Field(
        description="Over all links, mean between the last two samples; Hopper and later."
    )
    nvlink_receive_bytes_per_second: int | None
    pcie_transmit_bytes_per_second: int | None
    pcie_receive_bytes_per_second: int | None
    links: tuple[LinkReadings, ...] = Field(description="Those that read the same together.")
    unavailable: dict[str, str] = Field(description="Field to the reason why it is null.")


READ: Final = (
    "uuid",
    "name",
    "pci_bus_id",
    "numa_node",
    "cpu_affinity",
)
"""Fields of `TopologyGpu` that `Gpu` has by the same name."""

TRAFFIC: Final = (
    "nvlink_transmit_bytes_per_second",
    "nvlink_receive_bytes_per_second",
    "pcie_transmit_bytes_per_second",
    "pcie_receive_bytes_per_second",
)
"""Those of its `Gpm`."""


class NodeTopology(Wire):
    """How one node's GPUs are joined."""

    node: str
    state: Literal["starting", "ok", "absent", "failing"] = Field(description="Of NVML.")
    message: str | None = Field(description="Why its GPUs cannot be read, or not now.")
    simulated: bool = Field(description="True: no real hardware stands behind this.")
    driver_version: Name | None
    age_seconds: float | None = Field(description="Age of the links' states.")
    shape: str = Field(description="All of it in a line; nodes wired alike have the same.")
    models: dict[Name, int] = Field(
        max_length=MODELS, description="Board name to how many there are."
    )
    asymmetries: tuple[TopologyAsymmetry, ...] = Field(
        description="What differs among GPUs that should be alike. Empty: nothing."
    )
    matrix: tuple[tuple[str, ...], ...] = Field(
        description="As nvidia-smi topo -m: X; NV# = so many active NVLinks, direct or through "
        "switches; else PCIe: PIX, PXB, PHB, NODE, SYS; ? = unknown."
    )
    unknown: dict[str, str] = Field(
        description='Why cells are "?": "3" for all of that GPU\'s, "0-3" for a pair.'
    )
    peer_access: tuple[PeerAccess, ...] = Field(description="Most pairs first.")
    fabric: tuple[FabricPlace, ...] = Field(description="Boards that have one; else empty.")
    gpus: tuple[TopologyGpu, ...] = Field(default=(), description="With detail full.")
