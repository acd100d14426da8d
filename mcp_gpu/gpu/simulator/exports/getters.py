"""Getters whose whole shape is their prototype: text, numbers, masks and structs."""

from __future__ import annotations

import ctypes as c
from typing import Any

import pynvml

from mcp_gpu.gpu.simulator.exports.memory import PTR, U32, U64, fill, put, put_text
from mcp_gpu.gpu.simulator.library import Library, Refused, export


@export(
    PTR, PTR, U32,
    names="nvmlDeviceGetName nvmlDeviceGetUUID nvmlDeviceGetSerial nvmlDeviceGetVbiosVersion "
    "nvmlDeviceGetBoardPartNumber nvmlDeviceGetInforomImageVersion",
)  # fmt: skip
def _text_of_device(lib: Library, call: str, handle: int, buffer: int, size: int) -> None:
    put_text(buffer, size, lib.ask(call, handle))


@export(
    PTR, PTR,
    names="nvmlDeviceGetBrand nvmlDeviceGetArchitecture nvmlDeviceGetMinorNumber "
    "nvmlDeviceGetModuleId nvmlDeviceGetIndex nvmlDeviceGetCurrPcieLinkGeneration "
    "nvmlDeviceGetMaxPcieLinkGeneration nvmlDeviceGetGpuMaxPcieLinkGeneration "
    "nvmlDeviceGetCurrPcieLinkWidth nvmlDeviceGetMaxPcieLinkWidth nvmlDeviceGetPcieReplayCounter "
    "nvmlDeviceGetPersistenceMode nvmlDeviceGetComputeMode nvmlDeviceGetDisplayMode "
    "nvmlDeviceGetPerformanceState nvmlDeviceGetPowerState nvmlDeviceGetPowerUsage "
    "nvmlDeviceGetPowerManagementLimit nvmlDeviceGetPowerManagementDefaultLimit "
    "nvmlDeviceGetEnforcedPowerLimit nvmlDeviceGetMaxMigDeviceCount nvmlDeviceGetFanSpeed "
    "nvmlDeviceGetVirtualizationMode nvmlDeviceGetRetiredPagesPendingStatus "
    "nvmlDeviceGetGpuInstanceId nvmlDeviceGetComputeInstanceId nvmlDeviceIsMigDeviceHandle",
)  # fmt: skip
def _number(lib: Library, call: str, handle: int, out: int) -> None:
    put(out, U32, lib.ask(call, handle))


@export(
    PTR, PTR,
    names="nvmlDeviceGetTotalEnergyConsumption nvmlDeviceGetCurrentClocksEventReasons "
    "nvmlDeviceGetSupportedClocksEventReasons nvmlDeviceGetSupportedEventTypes",
)  # fmt: skip
def _long_number(lib: Library, call: str, handle: int, out: int) -> None:
    put(out, U64, lib.ask(call, handle))


@export(
    PTR, PTR, PTR,
    names="nvmlDeviceGetCudaComputeCapability nvmlDeviceGetMigMode nvmlDeviceGetEccMode "
    "nvmlDeviceGetPowerManagementLimitConstraints",
)  # fmt: skip
@export(PTR, PTR, PTR, PTR, PTR, names="nvmlDeviceGetRemappedRows")
def _numbers(lib: Library, call: str, handle: int, *outs: int) -> None:
    for out, value in zip(outs, lib.ask(call, handle), strict=True):
        put(out, U32, value)


@export(
    PTR, U32, PTR,
    names="nvmlDeviceGetClockInfo nvmlDeviceGetMaxClockInfo nvmlDeviceGetMaxCustomerBoostClock "
    "nvmlDeviceGetTemperature nvmlDeviceGetTemperatureThreshold nvmlDeviceGetNvLinkState "
    "nvmlDeviceGetNvLinkVersion nvmlDeviceGetNvLinkRemoteDeviceType nvmlDeviceGetApplicationsClock",
)  # fmt: skip
def _number_by_key(lib: Library, call: str, handle: int, key: int, out: int) -> None:
    put(out, U32, lib.ask(call, handle, key))


@export(PTR, U32, U32, PTR, names="nvmlDeviceGetTotalEccErrors")
@export(PTR, U32, U32, U32, PTR, names="nvmlDeviceGetMemoryErrorCounter")
def _long_number_by_keys(lib: Library, call: str, handle: int, *arguments: int) -> None:
    *keys, out = arguments
    put(out, U64, lib.ask(call, handle, *keys))


@export(PTR, U32, U32, PTR, names="nvmlDeviceGetNvLinkErrorCounter")
def _link_errors(lib: Library, call: str, handle: int, link: int, counter: int, out: int) -> None:
    """The older way to the field values 161 to 163, of which a profile has one or the other."""
    device = lib.device(handle)
    lib.enter(call, device.index)
    try:
        errors = device.answer(call, f"{link},{counter}")
    except Refused as refused:
        if refused.code != pynvml.NVML_ERROR_NOT_SUPPORTED or counter > 2:
            raise
        errors = device.answer("fields", f"{161 + counter},{link}")
    put(out, U64, errors)


@export(PTR, U32, PTR, U32, names="nvmlDeviceGetCpuAffinityWithinScope")
@export(PTR, U32, PTR, U32, names="nvmlDeviceGetMemoryAffinity")
def _mask(lib: Library, call: str, handle: int, size: int, out: int, scope: int) -> None:
    words = (U64 * size).from_address(out)
    for part in filter(None, lib.ask(call, handle).split(",")):
        first, _, last = part.partition("-")
        for bit in range(int(first), int(last or first) + 1):
            words[bit // 64] |= 1 << bit % 64


_STRUCTS = {
    "nvmlDeviceGetUtilizationRates": pynvml.c_nvmlUtilization_t,
    "nvmlDeviceGetBAR1MemoryInfo": pynvml.c_nvmlBAR1Memory_t,
    "nvmlDeviceGetPciInfo_v3": pynvml.nvmlPciInfo_t,
    "nvmlDeviceGetRowRemapperHistogram": pynvml.c_nvmlRowRemapperHistogramValues,
    "nvmlDeviceGetAttributes_v2": pynvml.c_nvmlDeviceAttributes,
    # Has a version in the header's newer structs, none in this one.
    "nvmlDeviceGetC2cModeInfoV": pynvml.c_nvmlC2cModeInfo_v1_t,
}

_VERSIONED = {
    "nvmlDeviceGetMemoryInfo_v2": (pynvml.c_nvmlMemory_v2_t,),
    "nvmlDeviceGetGpuFabricInfoV": (
        pynvml.c_nvmlGpuFabricInfo_v2_t,
        pynvml.c_nvmlGpuFabricInfo_v3_t,
    ),
    "nvmlDeviceGetPlatformInfo": (pynvml.c_nvmlPlatformInfo_v2_t,),
    "nvmlDeviceGetMarginTemperature": (pynvml.c_nvmlMarginTemperature_v1_t,),
    "nvmlDeviceGetAddressingMode": (pynvml.c_nvmlDeviceAddressingMode_t,),
    "nvmlDeviceGetSramEccErrorStatus": (pynvml.c_nvmlEccSramErrorStatus_v1_t,),
    "nvmlDeviceGetRepairStatus": (pynvml.c_nvmlRepairStatus_t,),
    "nvmlDeviceGetUnrepairableMemoryFlag_v1": (pynvml.c_nvmlUnrepairableMemory_v1_t,),
}


@export(PTR, PTR, names=" ".join(_STRUCTS))
def _struct(lib: Library, call: str, handle: int, out: int) -> None:
    fill(_STRUCTS[call].from_address(out), lib.ask(call, handle))


@export(PTR, PTR, names=" ".join(_VERSIONED))
def _versioned_struct(lib: Library, call: str, handle: int, out: int) -> None:
    """A struct whose first word says which layout the caller has: size and, on top, version."""
    values = lib.ask(call, handle)
    word = U32.from_address(out).value
    for struct in _VERSIONED[call]:
        version = word >> 24
        if word & 0xFFFFFF != c.sizeof(struct) or version > values.get("version", version):
            continue
        if lib.node is not None and not lib.node.lacks(f"{call} v{version}"):
            target = struct.from_address(out)
            known = {name for name, *_ in struct._fields_} - {"version"}
            return fill(target, {name: v for name, v in values.items() if name in known})
    raise Refused(pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)


@export(PTR, PTR, names="nvmlDeviceGetMemoryInfo")
def _memory(lib: Library, call: str, handle: int, out: int) -> None:
    """Version 1, which counts what the driver reserves as used."""
    memory = _ask_either(lib, handle, call, "nvmlDeviceGetMemoryInfo_v2")
    total, free = memory["total"], memory["free"]
    fill(
        pynvml.c_nvmlMemory_t.from_address(out),
        {"total": total, "free": free, "used": total - free},
    )


@export(PTR, PTR, names="nvmlDeviceGetCurrentClocksThrottleReasons")
def _throttle_reasons(lib: Library, call: str, handle: int, out: int) -> None:
    """The name before R535, which later drivers keep."""
    put(out, U64, _ask_either(lib, handle, call, "nvmlDeviceGetCurrentClocksEventReasons"))


def _ask_either(lib: Library, handle: int, first: str, second: str, *key: int) -> Any:
    """A recording of an old driver has the first name, every other profile only the second."""
    device = lib.device(handle)
    lib.enter(first, device.index)
    keys = ",".join(map(str, key))
    try:
        return device.answer(first, keys)
    except Refused as refused:
        if refused.code != pynvml.NVML_ERROR_NOT_SUPPORTED:
            raise
    return device.answer(second, keys)


@export(PTR, PTR, names="nvmlDeviceGetTemperatureV")
def _temperature(lib: Library, call: str, handle: int, out: int) -> None:
    reading = pynvml.c_nvmlTemperature_v1_t.from_address(out)
    if reading.version != pynvml.nvmlTemperature_v1:
        raise Refused(pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)
    reading.temperature = _ask_either(
        lib, handle, call, "nvmlDeviceGetTemperature", reading.sensorType
    )
