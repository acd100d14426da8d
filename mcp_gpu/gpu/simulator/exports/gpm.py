"""GPU performance monitoring: samples that callers own, and what lies between two of them."""

from __future__ import annotations

import ctypes as c
import math
from dataclasses import dataclass
from itertools import count

import pynvml

from mcp_gpu.gpu.simulator.exports.memory import PTR, U32, fill, put
from mcp_gpu.gpu.simulator.library import Device, Library, Refused, export

_METRICS = "nvmlGpmMetricsGet"

_order = count(1)


@dataclass
class _Sample:
    """What one allocated sample holds."""

    buffer: c.Array[c.c_char]
    device: Device | None = None
    taken: int = 0


@export(PTR, PTR, names="nvmlGpmQueryDeviceSupport")
def _supported(lib: Library, call: str, handle: int, out: int) -> None:
    support = pynvml.c_nvmlGpmSupport_t.from_address(out)
    if support.version != pynvml.NVML_GPM_SUPPORT_VERSION:
        raise Refused(pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)
    fill(support, lib.ask(call, handle))


@export(PTR, names="nvmlGpmSampleAlloc")
def _allocate(lib: Library, call: str, out: int) -> None:
    lib.enter(call)
    sample = _Sample(c.create_string_buffer(16))
    address = c.addressof(sample.buffer)
    lib.samples[address] = sample
    put(out, PTR, address)


@export(PTR, names="nvmlGpmSampleFree")
def _free(lib: Library, call: str, address: int | None) -> None:
    if lib.samples.pop(address or 0, None) is None:
        raise Refused(pynvml.NVML_ERROR_INVALID_ARGUMENT)


@export(PTR, PTR, names="nvmlGpmSampleGet")
def _take(lib: Library, call: str, handle: int, address: int | None) -> None:
    device = lib.device(handle)
    lib.enter(call, device.index)
    _fill(lib, address, device)


@export(PTR, U32, PTR, names="nvmlGpmMigSampleGet")
def _take_of_instance(
    lib: Library, call: str, handle: int, instance: int, address: int | None
) -> None:
    gpu = lib.device(handle)
    lib.enter(call, gpu.index)
    for device in gpu.answer("nvmlDeviceGetMigDeviceHandleByIndex"):
        if device is not None and device.answer("nvmlDeviceGetGpuInstanceId") == instance:
            return _fill(lib, address, device)
    raise Refused(pynvml.NVML_ERROR_NOT_FOUND)


def _fill(lib: Library, address: int | None, device: Device) -> None:
    sample = _sample(lib, address)
    if not _supports(device):
        raise Refused(pynvml.NVML_ERROR_NOT_SUPPORTED)
    sample.device, sample.taken = device, next(_order)


def _supports(device: Device) -> bool:
    return bool(device.answer("nvmlGpmQueryDeviceSupport")["isSupportedDevice"])


def _sample(lib: Library, address: int | None) -> _Sample:
    try:
        sample: _Sample = lib.samples[address or 0]
    except KeyError:
        raise Refused(pynvml.NVML_ERROR_INVALID_ARGUMENT) from None
    return sample


@export(PTR, names=_METRICS)
def _metrics(lib: Library, call: str, out: int) -> None:
    """The struct grows with the header; what a caller gives ends with the metrics it asks for."""
    size = pynvml.c_nvmlGpmMetricsGet_t.metrics.offset
    asked = _Asked.from_address(out)
    if asked.version != pynvml.NVML_GPM_METRICS_GET_VERSION:
        raise Refused(pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)
    older, newer = _sample(lib, asked.sample1), _sample(lib, asked.sample2)
    device = newer.device
    if device is None or older.device is not device or older.taken >= newer.taken:
        raise Refused(pynvml.NVML_ERROR_INVALID_ARGUMENT)
    lib.enter(call, device.index)
    slots = (pynvml.c_nvmlGpmMetric_t * asked.numMetrics).from_address(out + size)
    for slot in slots:
        try:
            slot.value = device.answer(_METRICS, str(slot.metricId))
            slot.nvmlReturn = 0
        except Refused as refused:
            slot.nvmlReturn, slot.value = refused.code, math.nan


class _Asked(c.Structure):
    """The part of c_nvmlGpmMetricsGet_t that every version has, with pointers as numbers."""

    _fields_ = [
        ("version", c.c_uint),
        ("numMetrics", c.c_uint),
        ("sample1", c.c_void_p),
        ("sample2", c.c_void_p),
    ]
