"""The functions of the simulated library: prototypes of nvml.h, and answers written as C does.

Each implementation takes (library, name of the call, *C arguments), writes through the caller's
pointers and raises `Refused` for a return code. Importing this module fills `EXPORTS`.
"""

from __future__ import annotations

import ctypes as c
import queue
import time
from collections.abc import Mapping
from typing import Any

import pynvml

from mcp_gpu.gpu.simulator.library import Library, Refused, export

_U32, _U64, _I32, _PTR = c.c_uint, c.c_ulonglong, c.c_int, c.c_void_p

_NO_INSTANCE = 0xFFFFFFFF
"""GPU and compute instance id of what is not in a MIG instance."""

_UNKNOWN_MEMORY = (1 << 64) - 1


def _put(pointer: int | None, kind: Any, value: Any) -> None:
    if not pointer:
        raise Refused(pynvml.NVML_ERROR_INVALID_ARGUMENT)
    kind.from_address(pointer).value = value


def _put_text(pointer: int, size: int, value: str) -> None:
    data = value.encode(errors="surrogateescape") + b"\0"
    if size < len(data):
        raise Refused(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)
    c.memmove(pointer, data, len(data))


def _fill(struct: Any, values: Mapping[str, Any]) -> None:
    """Write a struct's fields by name: numbers, text, and bytes as hexadecimal text."""
    for name, value in values.items():
        field = getattr(type(struct), name)
        if isinstance(value, str):
            data = value.encode(errors="surrogateescape")[: field.size]
            c.memmove(c.addressof(struct) + field.offset, data.ljust(field.size, b"\0"), field.size)
        elif isinstance(value, list):
            data = bytes(value)
            c.memmove(c.addressof(struct) + field.offset, data, min(field.size, len(data)))
        elif field.size == 1:
            # c_char, which would want bytes of length one.
            c.memmove(c.addressof(struct) + field.offset, bytes([value]), 1)
        else:
            setattr(struct, name, value)


# --- the library itself ---------------------------------------------------------------------


@export(_U32, names="nvmlInitWithFlags")
@export(names="nvmlInit_v2")
def _init(lib: Library, call: str, *flags: int) -> None:
    assert lib.node is not None
    lib.node.enter(call, None)
    if not lib.initialised:
        lib.gpus = list(lib.node.gpus)
    lib.initialised += 1


@export(names="nvmlShutdown")
def _shutdown(lib: Library, call: str) -> None:
    try:
        lib.enter(call)
    finally:
        # UNVERIFIED: a shutdown that is refused, as without a driver, still counts.
        lib.initialised = max(0, lib.initialised - 1)


@export(_I32, names="nvmlErrorString", result=_PTR)
def _error_string(lib: Library, call: str, code: int) -> int:
    return lib.keep_text(f"simulated error {code}")


@export(_PTR, _U32, names="nvmlSystemGetDriverVersion nvmlSystemGetNVMLVersion")
def _system_text(lib: Library, call: str, buffer: int, size: int) -> None:
    _put_text(buffer, size, lib.enter(call).system(call))


@export(_PTR, names="nvmlSystemGetCudaDriverVersion_v2")
def _cuda_version(lib: Library, call: str, out: int) -> None:
    _put(out, _I32, lib.enter(call).system(call))


@export(_PTR, _U32, names="nvmlSystemGetDriverBranch")
def _driver_branch(lib: Library, call: str, out: int, size: int) -> None:
    info = pynvml.c_nvmlSystemDriverBranchInfo_v1_t.from_address(out)
    _fill(info, {"branch": lib.enter(call).system(call)})


@export(_PTR, names="nvmlSystemGetConfComputeState")
def _confidential_compute(lib: Library, call: str, out: int) -> None:
    state = pynvml.c_nvmlConfComputeSystemState_t.from_address(out)
    _fill(state, lib.enter(call).system(call))


# --- handles --------------------------------------------------------------------------------


@export(_PTR, names="nvmlDeviceGetCount_v2")
def _count(lib: Library, call: str, out: int) -> None:
    lib.enter(call)
    _put(out, _U32, len(lib.gpus))


@export(_U32, _PTR, names="nvmlDeviceGetHandleByIndex_v2")
def _handle_by_index(lib: Library, call: str, index: int, out: int) -> None:
    gpus = lib.gpus
    known = index < len(gpus)
    # Faults follow the board, whatever index it has after another one has vanished.
    lib.enter(call, gpus[index].index if known else None)
    if not known:
        raise Refused(pynvml.NVML_ERROR_INVALID_ARGUMENT)
    _put(out, _PTR, lib.handle(gpus[index]))


@export(c.c_char_p, _PTR, names="nvmlDeviceGetHandleByUUID nvmlDeviceGetHandleByPciBusId_v2")
def _handle_by_name(lib: Library, call: str, name: bytes, out: int) -> None:
    lib.enter(call)
    for gpu in lib.gpus:
        if name.decode() in {
            gpu.answer("nvmlDeviceGetUUID"),
            gpu.answer("nvmlDeviceGetPciInfo_v3")["busId"],
        }:
            lib.enter(call, gpu.index)
            return _put(out, _PTR, lib.handle(gpu))
    raise Refused(pynvml.NVML_ERROR_NOT_FOUND)


@export(_PTR, _U32, _PTR, names="nvmlDeviceGetMigDeviceHandleByIndex")
def _mig_handle(lib: Library, call: str, handle: int, index: int, out: int) -> None:
    mig = lib.ask(call, handle)
    if index >= len(mig) or mig[index] is None:
        raise Refused(pynvml.NVML_ERROR_NOT_FOUND)
    _put(out, _PTR, lib.handle(mig[index]))


@export(_PTR, _PTR, names="nvmlDeviceGetDeviceHandleFromMigDeviceHandle")
def _parent_handle(lib: Library, call: str, handle: int, out: int) -> None:
    _put(out, _PTR, lib.handle(lib.ask(call, handle)))


# --- getters whose whole shape is their prototype -------------------------------------------


@export(
    _PTR, _PTR, _U32,
    names="nvmlDeviceGetName nvmlDeviceGetUUID nvmlDeviceGetSerial nvmlDeviceGetVbiosVersion "
    "nvmlDeviceGetBoardPartNumber nvmlDeviceGetInforomImageVersion",
)  # fmt: skip
def _text_of_device(lib: Library, call: str, handle: int, buffer: int, size: int) -> None:
    _put_text(buffer, size, lib.ask(call, handle))


@export(
    _PTR, _PTR,
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
    _put(out, _U32, lib.ask(call, handle))


@export(
    _PTR, _PTR,
    names="nvmlDeviceGetTotalEnergyConsumption nvmlDeviceGetCurrentClocksEventReasons "
    "nvmlDeviceGetSupportedClocksEventReasons nvmlDeviceGetSupportedEventTypes",
)  # fmt: skip
def _long_number(lib: Library, call: str, handle: int, out: int) -> None:
    _put(out, _U64, lib.ask(call, handle))


@export(
    _PTR, _PTR, _PTR,
    names="nvmlDeviceGetCudaComputeCapability nvmlDeviceGetMigMode nvmlDeviceGetEccMode "
    "nvmlDeviceGetPowerManagementLimitConstraints",
)  # fmt: skip
@export(_PTR, _PTR, _PTR, _PTR, _PTR, names="nvmlDeviceGetRemappedRows")
def _numbers(lib: Library, call: str, handle: int, *outs: int) -> None:
    for out, value in zip(outs, lib.ask(call, handle), strict=True):
        _put(out, _U32, value)


@export(
    _PTR, _U32, _PTR,
    names="nvmlDeviceGetClockInfo nvmlDeviceGetMaxClockInfo nvmlDeviceGetMaxCustomerBoostClock "
    "nvmlDeviceGetTemperature nvmlDeviceGetTemperatureThreshold nvmlDeviceGetNvLinkState "
    "nvmlDeviceGetNvLinkVersion nvmlDeviceGetApplicationsClock",
)  # fmt: skip
def _number_by_key(lib: Library, call: str, handle: int, key: int, out: int) -> None:
    _put(out, _U32, lib.ask(call, handle, key))


@export(_PTR, _U32, _U32, _PTR, names="nvmlDeviceGetTotalEccErrors")
@export(_PTR, _U32, _U32, _U32, _PTR, names="nvmlDeviceGetMemoryErrorCounter")
def _long_number_by_keys(lib: Library, call: str, handle: int, *arguments: int) -> None:
    *keys, out = arguments
    _put(out, _U64, lib.ask(call, handle, *keys))


@export(_PTR, _U32, _PTR, _U32, names="nvmlDeviceGetCpuAffinityWithinScope")
@export(_PTR, _U32, _PTR, _U32, names="nvmlDeviceGetMemoryAffinity")
def _mask(lib: Library, call: str, handle: int, size: int, out: int, scope: int) -> None:
    words = (_U64 * size).from_address(out)
    for part in filter(None, lib.ask(call, handle).split(",")):
        first, _, last = part.partition("-")
        for bit in range(int(first), int(last or first) + 1):
            words[bit // 64] |= 1 << bit % 64


# --- structs --------------------------------------------------------------------------------

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
}


@export(_PTR, _PTR, names=" ".join(_STRUCTS))
def _struct(lib: Library, call: str, handle: int, out: int) -> None:
    _fill(_STRUCTS[call].from_address(out), lib.ask(call, handle))


@export(_PTR, _PTR, names=" ".join(_VERSIONED))
def _versioned_struct(lib: Library, call: str, handle: int, out: int) -> None:
    """A struct whose first word says which layout the caller has: size and, on top, version."""
    values = lib.ask(call, handle)
    word = _U32.from_address(out).value
    for struct in _VERSIONED[call]:
        version = word >> 24
        if word & 0xFFFFFF != c.sizeof(struct) or version > values.get("version", version):
            continue
        if lib.node is not None and not lib.node.lacks(f"{call} v{version}"):
            target = struct.from_address(out)
            known = {name for name, *_ in struct._fields_} - {"version"}
            return _fill(target, {name: v for name, v in values.items() if name in known})
    raise Refused(pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)


@export(_PTR, _PTR, names="nvmlDeviceGetMemoryInfo")
def _memory(lib: Library, call: str, handle: int, out: int) -> None:
    """Version 1, which counts what the driver reserves as used."""
    memory = _ask_either(lib, handle, call, "nvmlDeviceGetMemoryInfo_v2")
    total, free = memory["total"], memory["free"]
    _fill(
        pynvml.c_nvmlMemory_t.from_address(out),
        {"total": total, "free": free, "used": total - free},
    )


@export(_PTR, _PTR, names="nvmlDeviceGetCurrentClocksThrottleReasons")
def _throttle_reasons(lib: Library, call: str, handle: int, out: int) -> None:
    """The name before R535, which later drivers keep."""
    _put(out, _U64, _ask_either(lib, handle, call, "nvmlDeviceGetCurrentClocksEventReasons"))


def _ask_either(lib: Library, handle: int, old: str, new: str) -> Any:
    """A recording of an old driver has the old name, every other profile only the new one."""
    try:
        return lib.ask(old, handle)
    except Refused as refused:
        if refused.code != pynvml.NVML_ERROR_NOT_SUPPORTED:
            raise
    return lib.ask(new, handle)


@export(_PTR, _PTR, names="nvmlDeviceGetTemperatureV")
def _temperature(lib: Library, call: str, handle: int, out: int) -> None:
    reading = pynvml.c_nvmlTemperature_v1_t.from_address(out)
    if reading.version != pynvml.nvmlTemperature_v1:
        raise Refused(pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)
    reading.temperature = lib.ask("nvmlDeviceGetTemperature", handle, reading.sensorType)


# --- several at once ------------------------------------------------------------------------


@export(_PTR, _I32, _PTR, names="nvmlDeviceGetFieldValues")
def _field_values(lib: Library, call: str, handle: int, count: int, out: int) -> None:
    device = lib.device(handle)
    lib.enter(call, device.index)
    for value in (pynvml.c_nvmlFieldValue_t * count).from_address(out):
        value.timestamp = int(time.time() * 1e6)
        try:
            answer = device.answer("fields", f"{value.fieldId},{value.scopeId}")
        except Refused as refused:
            value.nvmlReturn = refused.code
            continue
        value.nvmlReturn = 0
        value.valueType, member = _value_type(answer)
        setattr(value.value, member, answer)


def _value_type(value: float) -> tuple[int, str]:
    if isinstance(value, float):
        return pynvml.NVML_VALUE_TYPE_DOUBLE, "dVal"
    if value < 0:
        return pynvml.NVML_VALUE_TYPE_SIGNED_INT, "siVal"
    if value < 1 << 32:
        return pynvml.NVML_VALUE_TYPE_UNSIGNED_INT, "uiVal"
    return pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, "ullVal"


@export(
    _PTR, _PTR, _PTR,
    names="nvmlDeviceGetComputeRunningProcesses_v3 nvmlDeviceGetGraphicsRunningProcesses_v3 "
    "nvmlDeviceGetMPSComputeRunningProcesses_v3",
)  # fmt: skip
def _processes(lib: Library, call: str, handle: int, count: int, out: int | None) -> None:
    running = lib.ask(call, handle)
    room = _U32.from_address(count).value
    _put(count, _U32, len(running))
    if running and (not out or room < len(running)):
        raise Refused(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)
    if running and out:
        slots = (pynvml.c_nvmlProcessInfo_v3_t * len(running)).from_address(out)
        for slot, (pid, memory_bytes) in zip(slots, running, strict=True):
            slot.pid = pid
            slot.usedGpuMemory = _UNKNOWN_MEMORY if memory_bytes is None else memory_bytes
            slot.gpuInstanceId = slot.computeInstanceId = _NO_INSTANCE


# --- events ---------------------------------------------------------------------------------


@export(_PTR, names="nvmlEventSetCreate")
def _event_set_create(lib: Library, call: str, out: int) -> None:
    node = lib.enter(call)
    while not node.events.empty():
        node.events.get_nowait()  # What is past is never told.
    buffer = c.create_string_buffer(16)
    address = lib.keep(buffer)
    lib.event_sets[address] = {}
    _put(out, _PTR, address)


@export(_PTR, _U64, _PTR, names="nvmlDeviceRegisterEvents")
def _register_events(lib: Library, call: str, handle: int, types: int, event_set: int) -> None:
    supported = lib.ask("nvmlDeviceGetSupportedEventTypes", handle)
    if types & ~supported:
        # And nothing is registered, not even the supported ones.
        raise Refused(pynvml.NVML_ERROR_NOT_SUPPORTED)
    if event_set not in lib.event_sets:
        raise Refused(pynvml.NVML_ERROR_INVALID_ARGUMENT)
    lib.event_sets[event_set][lib.device(handle).index] = types


@export(_PTR, _PTR, _U32, names="nvmlEventSetWait_v2")
def _event_set_wait(lib: Library, call: str, event_set: int, out: int, timeout_ms: int) -> None:
    node = lib.enter(call)
    registered = lib.event_sets.get(event_set)
    if registered is None:
        raise Refused(pynvml.NVML_ERROR_INVALID_ARGUMENT)
    deadline = time.monotonic() + timeout_ms / 1000
    while True:
        try:
            index, kind, data = node.events.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise Refused(pynvml.NVML_ERROR_TIMEOUT) from None
        if registered.get(index, 0) & kind:
            break
    event = pynvml.c_nvmlEventData_t.from_address(out)
    event.device = c.cast(lib.handle(node.gpus[index]), pynvml.c_nvmlDevice_t)
    event.eventType, event.eventData = kind, data
    event.gpuInstanceId = event.computeInstanceId = _NO_INSTANCE


@export(_PTR, names="nvmlEventSetFree")
def _event_set_free(lib: Library, call: str, event_set: int) -> None:
    if lib.event_sets.pop(event_set, None) is None:
        raise Refused(pynvml.NVML_ERROR_INVALID_ARGUMENT)
