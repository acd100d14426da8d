"""Functions that answer with many values at once: field values, processes, retired pages."""

from __future__ import annotations

import ctypes as c
import time

import pynvml

from mcp_gpu.gpu.processes import KINDS, has_wide_rows
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


class _WideProcessInfo(c.Structure):
    """The row that drivers 535.43 to 535.86 write, whatever the caller has room for."""

    _fields_ = (*pynvml.c_nvmlProcessInfo_v3_t._fields_, ("usedGpuCcProtectedMemory", U64))


@export(PTR, PTR, PTR, names=" ".join(KINDS.values()))
def _processes(lib: Library, call: str, handle: int, count: int, out: int | None) -> None:
    running = lib.ask(call, handle)
    room = U32.from_address(count).value
    put(count, U32, len(running))
    if not running:
        return
    row = pynvml.c_nvmlProcessInfo_v3_t
    room_bytes = room * c.sizeof(row)
    if lib.node is not None and has_wide_rows(lib.node.system("nvmlSystemGetDriverVersion")):
        row = _WideProcessInfo
    if not out or room_bytes < len(running) * c.sizeof(row):
        raise Refused(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)
    slots = (row * len(running)).from_address(out)
    for slot, (pid, memory_bytes, *instance) in zip(slots, running, strict=True):
        slot.pid = pid
        slot.usedGpuMemory = _UNKNOWN_MEMORY if memory_bytes is None else memory_bytes
        slot.gpuInstanceId, slot.computeInstanceId = instance or (NO_INSTANCE, NO_INSTANCE)


@export(PTR, PTR, PTR, U64, names="nvmlDeviceGetProcessUtilization")
def _process_utilization(
    lib: Library, call: str, handle: int, out: int | None, count: int, last_seen: int
) -> None:
    """One sample of each process that was busy, taken now."""
    samples = lib.ask(call, handle)
    now = int(time.time() * 1e6)
    if not samples or last_seen >= now:
        raise Refused(pynvml.NVML_ERROR_NOT_FOUND)
    room = U32.from_address(count).value
    put(count, U32, len(samples))
    if not out or room < len(samples):
        raise Refused(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)
    slots = (pynvml.c_nvmlProcessUtilizationSample_t * len(samples)).from_address(out)
    for slot, (pid, sm, memory, encoder, decoder) in zip(slots, samples, strict=True):
        slot.pid, slot.timeStamp = pid, now
        slot.smUtil, slot.memUtil, slot.encUtil, slot.decUtil = sm, memory, encoder, decoder


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
