"""What can go wrong with a simulated node, as data: one model per kind.

A fault either refuses or delays calls (`enter`) or changes answers (`answers`, merged over the
profile's). Times are seconds; `gpu` is an index, and leaving it out means every GPU and the
calls that concern none.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt

from mcp_gpu.gpu.simulator.kernel_log import UPTIME_SECONDS

_GPU_IS_LOST, _NO_PERMISSION = 15, 4

_THROTTLE_BITS = {
    "hw_slowdown": 0x08,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake": 0x80,
}

_WHOLE_NODE = {
    "driver_not_loaded": 9,
    "library_missing": 12,
    "driver_mismatch": 18,
    "device_cgroup": 999,
}

_HANDLE_CALLS = "nvmlDeviceGetHandleBy*"


class _Fault(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu: NonNegativeInt | None = None

    def concerns(self, gpu_index: int | None) -> bool:
        """Whether a call about this GPU (None: about no GPU) meets the fault."""
        return self.gpu is None or self.gpu == gpu_index

    def code(self, call: str, gpu_index: int | None) -> int:
        """The return code that ends the call, 0 to let it pass."""
        return 0

    def delay_seconds(self, call: str) -> float:
        """How long the call blocks first, unless the fault is lifted meanwhile."""
        return 0.0

    def answers(self) -> Mapping[str, Any]:
        """What a GPU answers instead of what its profile says."""
        return {}


class Lost(_Fault):
    """Off the bus: the handle and every call on it answer GPU_IS_LOST."""

    kind: Literal["lost"]
    gpu: NonNegativeInt

    def code(self, call: str, gpu_index: int | None) -> int:
        return _GPU_IS_LOST


class Unreadable(_Fault):
    """Counted, and every attempt to get a handle answers `code` (999 beside an Xid 79)."""

    kind: Literal["unreadable"]
    gpu: NonNegativeInt
    return_code: Annotated[int, Field(ge=1, le=999)] = 999

    def code(self, call: str, gpu_index: int | None) -> int:
        return self.return_code if fnmatchcase(call, _HANDLE_CALLS) else 0


class Refused(_Fault):
    """The handle is given, and calls on it whose name matches answer `return_code`."""

    kind: Literal["refused"]
    gpu: NonNegativeInt
    return_code: Annotated[int, Field(ge=1, le=999)] = 999
    call: str = "*"

    def code(self, call: str, gpu_index: int | None) -> int:
        matches = fnmatchcase(call, self.call) and not fnmatchcase(call, _HANDLE_CALLS)
        return self.return_code if matches else 0


class NoPermission(_Fault):
    """With `gpu`: that one may not be opened. Without: neither may /dev/nvidiactl."""

    kind: Literal["no_permission"]

    def code(self, call: str, gpu_index: int | None) -> int:
        if self.gpu is None:
            return _NO_PERMISSION if call.startswith("nvmlInit") else 0
        return _NO_PERMISSION if fnmatchcase(call, _HANDLE_CALLS) else 0


class WholeNode(_Fault):
    """NVML as a whole refuses. `device_cgroup` is a container that lost its devices."""

    kind: Literal["driver_not_loaded", "library_missing", "driver_mismatch", "device_cgroup"]

    def code(self, call: str, gpu_index: int | None) -> int:
        return _WHOLE_NODE[self.kind]


class Hang(_Fault):
    """Calls whose name matches block, as during an Xid 119; `latency` means milliseconds."""

    kind: Literal["hang", "latency"]
    seconds: NonNegativeFloat
    call: str = "*"

    def delay_seconds(self, call: str) -> float:
        return self.seconds if fnmatchcase(call, self.call) else 0.0


class Ecc(_Fault):
    """Memory errors since the driver was loaded, and as many over the board's life."""

    kind: Literal["ecc"]
    gpu: NonNegativeInt
    uncorrected: NonNegativeInt = 1
    corrected: NonNegativeInt = 0

    def answers(self) -> Mapping[str, Any]:
        totals = {
            f"{kind},{span}": count
            for kind, count in ((0, self.corrected), (1, self.uncorrected))
            for span in (0, 1)
        }
        dram = {f"{key},2": count for key, count in totals.items()}
        return {"nvmlDeviceGetTotalEccErrors": totals, "nvmlDeviceGetMemoryErrorCounter": dram}


class RowRemap(_Fault):
    """Rows of HBM that are, or cannot be, replaced by spare ones."""

    kind: Literal["row_remap"]
    gpu: NonNegativeInt
    pending: bool = True
    failure: bool = False
    uncorrected: NonNegativeInt = 1

    def answers(self) -> Mapping[str, Any]:
        rows = [0, self.uncorrected, int(self.pending), int(self.failure)]
        return {
            "nvmlDeviceGetRemappedRows": rows,
            "fields": {str(142 + offset): value for offset, value in enumerate(rows)},
        }


class Throttle(_Fault):
    """Clock event reasons that are faults."""

    kind: Literal["throttle"]
    gpu: NonNegativeInt
    reasons: tuple[
        Literal["hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake"], ...
    ] = ("hw_slowdown", "hw_thermal_slowdown")

    def answers(self) -> Mapping[str, Any]:
        mask = sum(_THROTTLE_BITS[reason] for reason in set(self.reasons))
        return {"nvmlDeviceGetCurrentClocksEventReasons": mask}


class RecoveryAction(_Fault):
    """The driver's verdict, 0 to 7 (field 230)."""

    kind: Literal["recovery_action"]
    gpu: NonNegativeInt
    action: Annotated[int, Field(ge=0, le=7)]

    def answers(self) -> Mapping[str, Any]:
        return {"fields": {"230": self.action}}


class MissingSymbol(_Fault):
    """The library has no such function, as on an older driver."""

    kind: Literal["missing_symbol"]
    call: str


class Xid(_Fault):
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
    | Unreadable
    | Refused
    | NoPermission
    | WholeNode
    | Hang
    | Ecc
    | RowRemap
    | Throttle
    | RecoveryAction
    | MissingSymbol
    | Xid,
    Field(discriminator="kind"),
]
