"""Functions that answer with many values at once: field values, processes, retired pages."""

from __future__ import annotations

import time

import pynvml

from mcp_gpu.gpu.simulator.exports.memory import I32, NO_INSTANCE, PTR, U32, U64, put
from mcp_gpu.gpu.simulator.library import Library, Refused, export

_UNKNOWN_MEMORY = (1 << 64) - 1


@export(PTR, I32, PTR, names="nvmlDeviceGetFieldValues")
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
    PTR, PTR, PTR,
    names="nvmlDeviceGetComputeRunningProcesses_v3 nvmlDeviceGetGraphicsRunningProcesses_v3 "
    "nvmlDeviceGetMPSComputeRunningProcesses_v3",
)  # fmt: skip
def _processes(lib: Library, call: str, handle: int, count: int, out: int | None) -> None:
    running = lib.ask(call, handle)
    room = U32.from_address(count).value
    put(count, U32, len(running))
    if running and (not out or room < len(running)):
        raise Refused(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)
    if running and out:
        slots = (pynvml.c_nvmlProcessInfo_v3_t * len(running)).from_address(out)
        for slot, (pid, memory_bytes) in zip(slots, running, strict=True):
            slot.pid = pid
            slot.usedGpuMemory = _UNKNOWN_MEMORY if memory_bytes is None else memory_bytes
            slot.gpuInstanceId = slot.computeInstanceId = NO_INSTANCE


@export(PTR, U32, PTR, PTR, names="nvmlDeviceGetRetiredPages")
@export(PTR, U32, PTR, PTR, PTR, names="nvmlDeviceGetRetiredPages_v2")
def _retired_pages(
    lib: Library, call: str, handle: int, cause: int, count: int, out: int | None,
    times: int | None = None,
) -> None:  # fmt: skip
    """Addresses of pages, with the newer function when each was retired: here always 0."""
    pages = lib.ask("nvmlDeviceGetRetiredPages", handle, cause)
    room = U32.from_address(count).value
    put(count, U32, len(pages))
    if not pages:
        return
    if not out or room < len(pages):
        raise Refused(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)
    (U64 * len(pages)).from_address(out)[:] = pages
    if times:
        (U64 * len(pages)).from_address(times)[:] = [0] * len(pages)
