"""Which driver branch brought which NVML function and field, and retired which.

From the history of nvml.h in NVIDIA/go-nvml; the mapping of a header's CUDA version to a driver
branch (11.6 is 510, 11.8 520, 12.0 525, 12.2 535, 12.4 550, 12.6 560, 12.8 570, 12.9 575, 13.0 580)
is NVIDIA's release practice, not written in the header.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_INVALID_ARGUMENT, _DEPRECATED = 2, 26

_SINCE: dict[str, int | tuple[int, int]] = {
    "nvmlDeviceGetMemoryInfo_v2": 510,
    "nvmlDeviceGetComputeRunningProcesses_v3": 510,
    "nvmlDeviceGetGraphicsRunningProcesses_v3": 510,
    "nvmlDeviceGetMPSComputeRunningProcesses_v3": 510,
    "nvmlGpmQueryDeviceSupport": 520,
    "nvmlGpmSampleAlloc": 520,
    "nvmlGpmSampleFree": 520,
    "nvmlGpmSampleGet": 520,
    "nvmlGpmMetricsGet": 520,
    "nvmlGpmMigSampleGet": 525,
    "nvmlDeviceGetCurrentClocksEventReasons": 535,
    "nvmlDeviceGetModuleId": 535,
    "nvmlDeviceGetGpuFabricInfoV": 550,
    "nvmlDeviceGetC2cModeInfoV": 550,
    "nvmlDeviceGetSramEccErrorStatus": 550,
    "nvmlSystemGetDriverBranch": 560,
    "nvmlDeviceGetTemperatureV": 570,
    "nvmlDeviceGetMarginTemperature": 570,
    "nvmlDeviceGetPlatformInfo": 570,
    "nvmlDeviceGetAddressingMode": 580,
    "nvmlDeviceGetRepairStatus": 580,
    "nvmlDeviceGetUnrepairableMemoryFlag_v1": (580, 173),
    "nvmlDeviceGetGpuFabricInfoV v3": 580,
}
"""C function, or function and struct version, to the first branch that has it; for one that came
within a branch, to the first release seen with it (captures of 580.105 lack it)."""

_FIELDS_SINCE = ((169, 198, 535), (199, 229, 560), (230, 230, 570), (231, 250, 560),
                 (251, 268, 570), (269, 274, 575), (275, 302, 590), (303, 307, 615))  # fmt: skip
"""First field id, last field id, first branch."""

_DEPRECATED_SINCE = {
    "nvmlDeviceGetDisplayMode": 580,
    "nvmlDeviceGetApplicationsClock": 590,
    "nvmlDeviceGetPowerState": 590,
}

_CUDA = {510: 11060, 525: 12000, 535: 12020, 550: 12040, 560: 12060, 570: 12080, 575: 12090,
         580: 13000, 590: 13010, 595: 13020, 610: 13030}  # fmt: skip


def _branch(driver: str) -> int:
    return int(driver.split(".")[0])


def system(recorded: Mapping[str, Any], driver: str | None) -> dict[str, Any]:
    """A profile's answers about the system, as another driver would give them."""
    if driver is None or driver == recorded["nvmlSystemGetDriverVersion"]:
        return dict(recorded)
    branch = _branch(driver)
    cuda = max((version for since, version in _CUDA.items() if since <= branch), default=11000)
    return {
        **recorded,
        "nvmlSystemGetDriverVersion": driver,
        "nvmlSystemGetDriverBranch": f"r{branch}_00",
        "nvmlSystemGetNVMLVersion": f"{cuda // 1000}.{driver}",
        "nvmlSystemGetCudaDriverVersion_v2": cuda,
    }


def lacking(driver: str) -> frozenset[str]:
    """The functions that this driver's library does not have."""
    release = tuple(int(part) for part in driver.split("."))
    return frozenset(
        call
        for call, since in _SINCE.items()
        if release < (since if isinstance(since, tuple) else (since,))
    )


def lacking_fields(driver: str) -> dict[str, Any]:
    """Answers for the field ids that this driver does not know."""
    branch = _branch(driver)
    return {
        str(field): {"error": _INVALID_ARGUMENT}
        for first, last, since in _FIELDS_SINCE
        if branch < since
        for field in range(first, last + 1)
    }


def deprecated(driver: str) -> dict[str, Any]:
    """Answers of the functions that this driver still exports and no longer serves."""
    branch = _branch(driver)
    return {
        call: {"error": _DEPRECATED} for call, since in _DEPRECATED_SINCE.items() if branch >= since
    }
