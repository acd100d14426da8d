"""What NVML refuses, as one small tree, and what each refusal means for a person.

    NvmlError(code, call)
    ├─ NvmlUnavailable   NVML as a whole: no library, no driver, refused
    └─ GpuUnreadable     one GPU is counted and gives no handle or no answers
       └─ GpuLost        one GPU is off the bus

Every other refusal is one field's reason, not an exception.
"""

from __future__ import annotations

from enum import IntEnum

from mcp_gpu.gpu.model import Failure, SnapshotState


class Code(IntEnum):
    """nvmlReturn_t of nvml.h, by NVIDIA's names."""

    BINDING_DEFECT = -1
    """Not NVML's: the Python binding raised something that is no NVMLError."""
    UNINITIALIZED = 1
    INVALID_ARGUMENT = 2
    NOT_SUPPORTED = 3
    NO_PERMISSION = 4
    ALREADY_INITIALIZED = 5
    NOT_FOUND = 6
    INSUFFICIENT_SIZE = 7
    INSUFFICIENT_POWER = 8
    DRIVER_NOT_LOADED = 9
    TIMEOUT = 10
    IRQ_ISSUE = 11
    LIBRARY_NOT_FOUND = 12
    FUNCTION_NOT_FOUND = 13
    CORRUPTED_INFOROM = 14
    GPU_IS_LOST = 15
    RESET_REQUIRED = 16
    OPERATING_SYSTEM = 17
    LIB_RM_VERSION_MISMATCH = 18
    IN_USE = 19
    MEMORY = 20
    NO_DATA = 21
    VGPU_ECC_NOT_SUPPORTED = 22
    INSUFFICIENT_RESOURCES = 23
    FREQ_NOT_SUPPORTED = 24
    ARGUMENT_VERSION_MISMATCH = 25
    DEPRECATED = 26
    NOT_READY = 27
    GPU_NOT_FOUND = 28
    INVALID_STATE = 29
    RESET_TYPE_NOT_SUPPORTED = 30
    UNKNOWN = 999


NOT_SUPPORTED = "not_supported"
DRIVER_TOO_OLD = "driver_too_old"

LASTING = frozenset({NOT_SUPPORTED, DRIVER_TOO_OLD, "deprecated", "no_permission"})
"""Reasons that are no trouble of the GPU; asking again gives them again."""

_REASONS: dict[int, str] = {
    Code.NOT_SUPPORTED: NOT_SUPPORTED,
    Code.VGPU_ECC_NOT_SUPPORTED: NOT_SUPPORTED,
    Code.NO_PERMISSION: "no_permission",
    Code.TIMEOUT: "timeout",
    Code.FUNCTION_NOT_FOUND: DRIVER_TOO_OLD,
    Code.ARGUMENT_VERSION_MISMATCH: DRIVER_TOO_OLD,
    Code.DEPRECATED: "deprecated",
    Code.GPU_IS_LOST: "gpu_lost",
}

_DEVICE_CGROUP = (
    "the container cannot reach its GPU devices any more, typically after a systemctl "
    "daemon-reload on the node. Restart this pod; CDI or nvidia-container-toolkit 1.18 and "
    "later prevent it."
)

_ADVICE: dict[int, str] = {
    Code.LIBRARY_NOT_FOUND: "no driver libraries in this container or on this node. If the node "
    "has an NVIDIA GPU: runtimeClassName nvidia, NVIDIA_VISIBLE_DEVICES=all and "
    "NVIDIA_DRIVER_CAPABILITIES=utility.",
    Code.DRIVER_NOT_LOADED: "the library is there and the kernel module is not loaded. The node "
    "has no GPU, or its driver (pod) is not ready: look at lsmod and /proc/driver/nvidia/version.",
    Code.LIB_RM_VERSION_MISMATCH: "the driver was upgraded under a running container or host. "
    "Restart this pod; if that does not help, reload the kernel module or reboot the node.",
    Code.NO_PERMISSION: "/dev/nvidiactl cannot be opened: check the user id, the device's "
    "permissions, the device cgroup and SELinux.",
    Code.INSUFFICIENT_POWER: "a GPU lacks external power: check its cabling.",
    Code.IRQ_ISSUE: "the kernel has an interrupt problem with a GPU: check the board and its slot.",
    Code.CORRUPTED_INFOROM: "a GPU's InfoROM is corrupted: the board needs service.",
    Code.OPERATING_SYSTEM: _DEVICE_CGROUP,
    Code.UNKNOWN: _DEVICE_CGROUP,
}
"""NVML as a whole: what a return code of nvmlInit is known to mean in the field."""

_GPU_ADVICE: dict[int, str] = {
    Code.GPU_IS_LOST: "the GPU has fallen off the bus (often Xid 79): drain the node and "
    "power-cycle it.",
    Code.TIMEOUT: "the driver does not answer about this GPU in time: look for Xid 119 or 154 in "
    "the kernel log and for a recovery_action; drain its pods before a reset.",
    Code.RESET_REQUIRED: "the GPU must be reset before it can be used: drain its pods, stop what "
    "monitors it, this agent included (a reset is refused while a process has the GPU open), "
    "then nvidia-smi --gpu-reset, or do what recovery_action says.",
    Code.NO_PERMISSION: "this process may not open the GPU: check device permissions and cgroup.",
    Code.UNKNOWN: "the driver cannot talk to the GPU (a typical companion of Xid 79): drain the "
    "node and power-cycle it.",
}

_WHOLE_LIBRARY: frozenset[int] = frozenset(
    {
        Code.UNINITIALIZED,
        Code.DRIVER_NOT_LOADED,
        Code.LIBRARY_NOT_FOUND,
        Code.LIB_RM_VERSION_MISMATCH,
    }
)

_ABSENT: set[int] = {Code.DRIVER_NOT_LOADED, Code.LIBRARY_NOT_FOUND}


class NvmlError(Exception):
    """NVML answered `call` with `code`."""

    def __init__(self, code: int, call: str, message: str = "") -> None:
        super().__init__(message or f"{call}: {error_name(code)} ({code})")
        self.code = code
        self.call = call

    @property
    def reason(self) -> str:
        """Of the closed list that `Gpu.unavailable` uses."""
        return _REASONS.get(self.code, f"error({self.code})")

    def raise_beyond_field(self) -> None:
        """Do nothing where only the one call was refused.

        Raises:
            NvmlUnavailable: the code says that NVML itself is gone.
            GpuLost: it says that the whole GPU is.
            GpuUnreadable: it is one already.
        """
        if isinstance(self, GpuUnreadable):
            raise self
        if self.code in _WHOLE_LIBRARY:
            raise NvmlUnavailable(self.code, self.call) from self
        if self.code == Code.GPU_IS_LOST:
            raise GpuLost(self.code, self.call) from self


class NvmlUnavailable(NvmlError):
    """NVML cannot be used at all; `state` is `absent` (no library or driver) or `failing`.

    Args:
        detail: what the system itself says, added to the advice.
        explanation: what is known of this machine, instead of what the code means in general.
    """

    def __init__(self, code: int, call: str, detail: str = "", explanation: str = "") -> None:
        name = error_name(code)
        advice = init_advice(code) or f"{call} failed."
        message = f"{name}: " + (explanation or advice + (f" ({detail})" if detail else ""))
        super().__init__(code, call, message)
        self.failure = Failure(code=code, name=name, message=message)
        self.state: SnapshotState = "absent" if code in _ABSENT else "failing"


class GpuUnreadable(NvmlError):
    """NVML counts this GPU, and refuses a handle or every answer or blocks."""

    def __init__(self, code: int, call: str) -> None:
        super().__init__(code, call, gpu_error(code))


class GpuLost(GpuUnreadable):
    """This GPU is off the bus; every further call on it fails alike."""


def error_name(code: int) -> str:
    """NVIDIA's name for a code as the binding's classes write it: "GpuIsLost"."""
    try:
        return "".join(word.capitalize() for word in Code(code).name.split("_"))
    except ValueError:
        return f"Code{code}"


def init_advice(code: int) -> str:
    """What a return code of nvmlInit is known to mean, and what to do; empty: not known."""
    return _ADVICE.get(code, "")


def gpu_error(code: int) -> str:
    """One sentence: what is wrong with the GPU as a whole, and what to do."""
    advice = _GPU_ADVICE.get(code, "the driver refuses to talk about this GPU.")
    return f"{error_name(code)} ({code}): {advice}"
