"""What is counted, by whom, and what a disagreement is told as."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from pydantic import Field

from mcp_gpu.gpu.health.model import Confidence
from mcp_gpu.gpu.pci import PciBus
from mcp_gpu.gpu.wire import Wire

__all__ = ["Advertised", "Board", "Code", "Count", "Counted", "Disagreement", "Driver", "Sliced"]

Code = Literal[
    "fallen_off_bus",
    "not_started",
    "driver_not_loaded",
    "fewer_than_expected",
    "device_plugin_absent",
    "device_plugin_outdated",
    "device_unhealthy",
    "device_never_recovered",
    "mig_layout_refused",
    "gfd_label_stale",
    "resource_slices_stale",
    "resource_slices_incomplete",
]


@dataclass(frozen=True, slots=True)
class Board:
    """A GPU as NVML lists it."""

    index: int
    uuid: str | None = None
    address: str | None = None
    """On the bus, as the kernel writes it."""
    lost: bool = False
    sound: bool | None = True
    """Whether its health is no worse than a warning; None: unknown."""
    mig: bool = False
    profiles: Mapping[str, int] = field(default_factory=dict)
    """Of its MIG instances, to how many."""


@dataclass(frozen=True, slots=True)
class Driver:
    """What the node's agent says."""

    count: int | None
    """NVML's; None: it cannot be asked."""
    boards: tuple[Board, ...] = ()
    most: int | None = None
    """Most that it has counted since the agent started."""
    wanted: int | None = None
    """How many there should be, where somebody has said so."""
    instances_known: bool = True
    """Whether all MIG instances are listed."""
    for_machines: bool = False
    """Virtual machines are given parts of the GPUs, by names that are not the plugin's."""
    why: str = ""
    """Why NVML cannot be asked."""


@dataclass(frozen=True, slots=True)
class Advertised:
    """What the node object says."""

    capacity: Mapping[str, int]
    """Resource to devices that a device plugin has told the kubelet of."""
    allocatable: Mapping[str, int]
    """Those of them that it calls healthy."""
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Sliced:
    """What Dynamic Resource Allocation publishes of the node."""

    gpus: int = 0
    """Whole ones, and those that MIG devices are parts of."""
    uuids: frozenset[str] = frozenset()
    """Of those that tell."""
    tainted: tuple[str, ...] = ()
    """Devices that are not to be given out, each with why."""
    missing: tuple[str, ...] = ()
    """Pools of which not every slice is there, in words."""
    drivers: tuple[str, ...] = ()
    """All that publish something here."""
    published: bool = False
    """NVIDIA's driver publishes GPUs here, be they none."""


@dataclass(frozen=True, slots=True)
class Counted:
    """All of it. What is None could not be had, for the reason beside it."""

    driver: Driver | None = None
    bus: PciBus | None = None
    agent_why: str = ""
    advertised: Advertised | None = None
    node_why: str = ""
    sliced: Sliced | None = None
    slices_why: str = ""


Source = Literal[
    "nvml", "pci_bus", "capacity", "allocatable", "resource_slices", "gfd_label", "expected"
]


class Count(Wire):
    """How many GPUs one source counts."""

    source: Source
    count: int | None = Field(
        description="Null: not known. Of capacity and allocatable devices, of which sharing and "
        "MIG make several of one GPU."
    )
    note: str = Field(description="What it is made of, or why it is not known.")


class Disagreement(Wire):
    """Two sources that cannot both be right, and why."""

    code: Code
    gpus: tuple[int, ...] = Field(description="Indices, where it is known which.")
    title: str = Field(description="One sentence.")
    cause: str
    evidence: tuple[str, ...]
    fix: str
    confidence: Confidence


GPU_RESOURCE: Final = "nvidia.com/gpu"
MIG_PREFIX: Final = "nvidia.com/mig-"
COUNT_LABEL: Final = "nvidia.com/gpu.count"
