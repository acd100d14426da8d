"""The library itself: initialisation, versions, and handles of GPUs and MIG devices."""

from __future__ import annotations

import ctypes as c

import pynvml

from mcp_gpu.gpu.simulator.exports.memory import I32, PTR, U32, fill, put, put_text
from mcp_gpu.gpu.simulator.library import Library, Refused, export


@export(U32, names="nvmlInitWithFlags")
@export(names="nvmlInit_v2")
def _init(lib: Library, call: str, *flags: int) -> None:
    assert lib.node is not None
    lib.node.enter(call, None)
    if not lib.initialised:
        lib.gpus = lib.node.found()
    lib.initialised += 1


@export(names="nvmlShutdown")
def _shutdown(lib: Library, call: str) -> None:
    try:
        lib.enter(call)
    finally:
        # UNVERIFIED: a shutdown that is refused, as without a driver, still counts.
        lib.initialised = max(0, lib.initialised - 1)


@export(I32, names="nvmlErrorString", result=PTR)
def _error_string(lib: Library, call: str, code: int) -> int:
    return lib.keep_text(f"simulated error {code}")


@export(PTR, U32, names="nvmlSystemGetDriverVersion nvmlSystemGetNVMLVersion")
def _system_text(lib: Library, call: str, buffer: int, size: int) -> None:
    put_text(buffer, size, lib.enter(call).system(call))


@export(PTR, names="nvmlSystemGetCudaDriverVersion_v2")
def _cuda_version(lib: Library, call: str, out: int) -> None:
    put(out, I32, lib.enter(call).system(call))


@export(PTR, U32, names="nvmlSystemGetDriverBranch")
def _driver_branch(lib: Library, call: str, out: int, size: int) -> None:
    info = pynvml.c_nvmlSystemDriverBranchInfo_v1_t.from_address(out)
    fill(info, {"branch": lib.enter(call).system(call)})


@export(PTR, names="nvmlSystemGetConfComputeState")
def _confidential_compute(lib: Library, call: str, out: int) -> None:
    state = pynvml.c_nvmlConfComputeSystemState_t.from_address(out)
    fill(state, lib.enter(call).system(call))


@export(PTR, names="nvmlDeviceGetCount_v2")
def _count(lib: Library, call: str, out: int) -> None:
    lib.enter(call)
    put(out, U32, len(lib.gpus))


@export(U32, PTR, names="nvmlDeviceGetHandleByIndex_v2")
def _handle_by_index(lib: Library, call: str, index: int, out: int) -> None:
    gpus = lib.gpus
    known = index < len(gpus)
    # Faults follow the board, whatever index it has after another one has vanished.
    lib.enter(call, gpus[index].index if known else None)
    if not known:
        raise Refused(pynvml.NVML_ERROR_INVALID_ARGUMENT)
    put(out, PTR, lib.handle(gpus[index]))


@export(c.c_char_p, PTR, names="nvmlDeviceGetHandleByUUID nvmlDeviceGetHandleByPciBusId_v2")
def _handle_by_name(lib: Library, call: str, name: bytes, out: int) -> None:
    lib.enter(call)
    for gpu in lib.gpus:
        if name.decode() in {
            gpu.answer("nvmlDeviceGetUUID"),
            gpu.answer("nvmlDeviceGetPciInfo_v3")["busId"],
        }:
            lib.enter(call, gpu.index)
            return put(out, PTR, lib.handle(gpu))
    raise Refused(pynvml.NVML_ERROR_NOT_FOUND)


@export(PTR, U32, PTR, names="nvmlDeviceGetMigDeviceHandleByIndex")
def _mig_handle(lib: Library, call: str, handle: int, index: int, out: int) -> None:
    mig = lib.ask(call, handle)
    if index >= len(mig) or mig[index] is None:
        raise Refused(pynvml.NVML_ERROR_NOT_FOUND)
    put(out, PTR, lib.handle(mig[index]))


@export(PTR, PTR, names="nvmlDeviceGetDeviceHandleFromMigDeviceHandle")
def _parent_handle(lib: Library, call: str, handle: int, out: int) -> None:
    put(out, PTR, lib.handle(lib.ask(call, handle)))
