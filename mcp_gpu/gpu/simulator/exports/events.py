"""Event sets."""

from __future__ import annotations

import ctypes as c
import queue
import time

import pynvml

from mcp_gpu.gpu.simulator.exports.memory import NO_INSTANCE, PTR, U32, U64, put
from mcp_gpu.gpu.simulator.library import Library, Refused, export


@export(PTR, names="nvmlEventSetCreate")
def _event_set_create(lib: Library, call: str, out: int) -> None:
    node = lib.enter(call)
    while not node.events.empty():
        node.events.get_nowait()  # What is past is never told.
    buffer = c.create_string_buffer(16)
    address = lib.keep(buffer)
    lib.event_sets[address] = {}
    put(out, PTR, address)


@export(PTR, U64, PTR, names="nvmlDeviceRegisterEvents")
def _register_events(lib: Library, call: str, handle: int, types: int, event_set: int) -> None:
    supported = lib.ask("nvmlDeviceGetSupportedEventTypes", handle)
    if types & ~supported:
        # And nothing is registered, not even the supported ones.
        raise Refused(pynvml.NVML_ERROR_NOT_SUPPORTED)
    if event_set not in lib.event_sets:
        raise Refused(pynvml.NVML_ERROR_INVALID_ARGUMENT)
    lib.event_sets[event_set][lib.device(handle).index] = types


@export(PTR, PTR, U32, names="nvmlEventSetWait_v2")
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
    event.gpuInstanceId = event.computeInstanceId = NO_INSTANCE


@export(PTR, names="nvmlEventSetFree")
def _event_set_free(lib: Library, call: str, event_set: int) -> None:
    if lib.event_sets.pop(event_set, None) is None:
        raise Refused(pynvml.NVML_ERROR_INVALID_ARGUMENT)
