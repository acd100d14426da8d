"""What can go wrong with a simulated node, as data: one model per kind.

A fault either refuses or delays calls (`code`, `delay_seconds`) or changes answers (`answers`);
those of memory, of heat and clocks and of links have modules of their own. Times are seconds;
`gpu` is an index, and leaving it out means every GPU and the calls that concern none.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from mcp_gpu.gpu.simulator.changes import BoardFault, FaultModel
from mcp_gpu.gpu.simulator.clock_faults import (
    ClockFault,
    MemoryTemperature,
    PowerBrake,
    Temperature,
    Throttle,
)
from mcp_gpu.gpu.simulator.link_faults import (
    Fabric,
    LinkFault,
    NvlinkBer,
    NvlinkDown,
    NvlinkErrors,
    PcieErrors,
    PcieLink,
    PcieReplays,
)
from mcp_gpu.gpu.simulator.memory_faults import (
    Ecc,
    MemoryFault,
    RemapExhausted,
    RepairPending,
    RetiredPages,
    RowRemap,
    SramThreshold,
    UnrepairableMemory,
)
from mcp_gpu.gpu.simulator.pair_faults import NumaSide, PairFault, PeerAccess
from mcp_gpu.gpu.simulator.processes import HiddenProcesses, LeakedMemory, ProcessFault

__all__ = [
    "Ecc",
    "EccPending",
    "Fabric",
    "Fault",
    "Hang",
    "HiddenProcesses",
    "LeakedMemory",
    "Lost",
    "MemoryTemperature",
    "MigPending",
    "MissingSymbol",
    "NoPermission",
    "NumaSide",
    "NvlinkBer",
    "NvlinkDown",
    "NvlinkErrors",
    "PcieErrors",
    "PcieLink",
    "PcieReplays",
    "PeerAccess",
    "PersistenceOff",
    "PowerBrake",
    "RecoveryAction",
    "Refused",
    "RemapExhausted",
    "RepairPending",
    "RetiredPages",
    "RowRemap",
    "SramThreshold",
    "Temperature",
    "Throttle",
    "Unreadable",
    "UnrepairableMemory",
    "Vanished",
    "WholeNode",
    "Xid",
]

from mcp_gpu.gpu.simulator.kernel_log import UPTIME_SECONDS

_GPU_IS_LOST, _NO_PERMISSION = 15, 4

_WHOLE_NODE = {
    "driver_not_loaded": 9,
    "library_missing": 12,
    "driver_mismatch": 18,
    "device_cgroup": 999,
}

_HANDLE_CALLS = "nvmlDeviceGetHandleBy*"


class Lost(BoardFault):
    """Off the bus: the handle and every call on it answer GPU_IS_LOST."""

    kind: Literal["lost"]

    def code(self, call: str, gpu_index: int | None) -> int:
        return _GPU_IS_LOST


class Vanished(BoardFault):
    """Lost, and not even counted from the next initialisation on, as after a reboot."""

    kind: Literal["vanished"]

    def code(self, call: str, gpu_index: int | None) -> int:
        return _GPU_IS_LOST


class Unreadable(BoardFault):
    """Counted, and every attempt to get a handle answers `code` (999 beside an Xid 79)."""

    kind: Literal["unreadable"]
    return_code: Annotated[int, Field(ge=1, le=999)] = 999

    def code(self, call: str, gpu_index: int | None) -> int:
        return self.return_code if fnmatchcase(call, _HANDLE_CALLS) else 0


class Refused(BoardFault):
    """The handle is given, and calls on it whose name matches answer `return_code`."""

    kind: Literal["refused"]
    return_code: Annotated[int, Field(ge=1, le=999)] = 999
    call: str = "*"

    def code(self, call: str, gpu_index: int | None) -> int:
        matches = fnmatchcase(call, self.call) and not fnmatchcase(call, _HANDLE_CALLS)
        return self.return_code if matches else 0


class NoPermission(FaultModel):
    """With `gpu`: that one may not be opened. Without: neither may /dev/nvidiactl."""

    kind: Literal["no_permission"]

    def code(self, call: str, gpu_index: int | None) -> int:
        if self.gpu is None:
            return _NO_PERMISSION if call.startswith("nvmlInit") else 0
        return _NO_PERMISSION if fnmatchcase(call, _HANDLE_CALLS) else 0


class WholeNode(FaultModel):
    """NVML as a whole refuses. `device_cgroup` is a container that lost its devices."""

    kind: Literal["driver_not_loaded", "library_missing", "driver_mismatch", "device_cgroup"]

    def code(self, call: str, gpu_index: int | None) -> int:
        return _WHOLE_NODE[self.kind]


class Hang(FaultModel):
    """Calls whose name matches block, as during an Xid 119; `latency` means milliseconds."""

    kind: Literal["hang", "latency"]
    seconds: NonNegativeFloat
    call: str = "*"

    def delay_seconds(self, call: str) -> float:
        return self.seconds if fnmatchcase(call, self.call) else 0.0


class MigPending(BoardFault):
    """A MIG mode that the next reset brings."""

    kind: Literal["mig_pending"]
    enabled: bool = True

    def answers(self) -> Mapping[str, Any]:
        return {"nvmlDeviceGetMigMode": {"1": int(self.enabled)}}


class EccPending(BoardFault):
    """An ECC mode that the next reset brings."""

    kind: Literal["ecc_pending"]
    enabled: bool = False

    def answers(self) -> Mapping[str, Any]:
        return {
            "nvmlDeviceGetEccMode": {"1": int(self.enabled)},
            "fields": {"2": int(self.enabled)},
        }


class PersistenceOff(BoardFault):
    """The driver unloads the GPU when nobody uses it."""

    kind: Literal["persistence_off"]

    def answers(self) -> Mapping[str, Any]:
        return {"nvmlDeviceGetPersistenceMode": 0}


class RecoveryAction(BoardFault):
    """The driver's verdict, 0 to 7 (field 230)."""

    kind: Literal["recovery_action"]
    action: Annotated[int, Field(ge=0, le=7)]

    def answers(self) -> Mapping[str, Any]:
        return {"fields": {"230": self.action}}


class MissingSymbol(FaultModel):
    """The library has no such function, as on an older driver."""

    kind: Literal["missing_symbol"]
    call: str


class Xid(FaultModel):
    """Xids when the fault appears: lines of the kernel log, and events of NVML.

    NVML tells neither of what is past nor of 79, 119 and 120.
    """

    kind: Literal["xid"]
    gpu: NonNegativeInt
    xid: Annotated[int, Field(ge=1, le=999)]
    text: Annotated[str, Field(pattern=r"^[ -~]+$", max_length=900)] = "simulated"
    pid: NonNegativeInt | None = None
    process: Annotated[str, Field(pattern=r"^[^,\x00-\x1f]+$", max_length=64)] | None = None
    count: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    sources: tuple[Literal["nvml", "kernel_log"], ...] = ("nvml", "kernel_log")
    seconds_ago: Annotated[float, Field(ge=0, le=UPTIME_SECONDS)] = 0.0

    def line(self, bus_id: str) -> str | None:
        """What the driver writes of a GPU "0000:53:00"; None: nothing."""
        if "kernel_log" not in self.sources:
            return None
        pid = "'<unknown>'" if self.pid is None else self.pid
        name = self.process or "<unknown>"
        return f"NVRM: Xid (PCI:{bus_id}): {self.xid}, pid={pid}, name={name}, {self.text}"

    @property
    def by_nvml(self) -> bool:
        """Whether NVML tells of it."""
        return "nvml" in self.sources and not self.seconds_ago and self.xid not in _NEVER_BY_NVML


_NEVER_BY_NVML = frozenset({79, 119, 120})

Fault = Annotated[
    Lost
    | Vanished
    | Unreadable
    | Refused
    | NoPermission
    | WholeNode
    | Hang
    | MemoryFault
    | ClockFault
    | LinkFault
    | ProcessFault
    | PairFault
    | MigPending
    | EccPending
    | PersistenceOff
    | RecoveryAction
    | MissingSymbol
    | Xid,
    Field(discriminator="kind"),
]
