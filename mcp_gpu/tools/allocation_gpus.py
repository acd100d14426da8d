"""The GPUs of a node as `get_pod_gpu_allocation` tells them, before their holders are counted."""

from __future__ import annotations

from typing import Final

from mcp_gpu.gpu.history import Past
from mcp_gpu.gpu.model import Gpu, MigDevice, Snapshot
from mcp_gpu.tools.allocation_model import AllocatedGpu, AllocatedMig

__all__ = ["gpus"]

QUIET_PERCENT: Final = 1

QUIET_BYTES: Final = 64 * 2**20
"""More than a board or an instance uses that nobody computes on, beyond what the driver reserves,
and less than a CUDA context, which takes some hundreds of MiB. UNVERIFIED on every board."""

NO_RESERVE: Final = "the driver does not tell its own memory apart (before R510)"


def gpus(snapshot: Snapshot, past: Past) -> tuple[AllocatedGpu, ...]:
    """Each GPU with what it does, and for how long it has done nothing."""
    return tuple(_gpu(gpu, snapshot, past) for gpu in snapshot.gpus)


def _gpu(gpu: Gpu, snapshot: Snapshot, past: Past) -> AllocatedGpu:
    read = {
        "uuid": gpu.uuid,
        "name": gpu.name,
        "memory_used_bytes": gpu.memory_used_bytes,
        "memory_total_bytes": gpu.memory_total_bytes,
        "utilization_gpu_percent": gpu.utilization_gpu_percent,
    }
    unavailable = {name: gpu.unavailable[name] for name, value in read.items() if value is None}
    if (reason := unavailable.pop("utilization_gpu_percent", None)) is not None:
        unavailable["utilization_percent"] = reason
    quiet = _is_quiet(gpu)
    if quiet is None:
        unavailable["quiet"] = next(iter(unavailable.values()), NO_RESERVE)
    seconds = _quiet_seconds(gpu, snapshot, past) if quiet else None
    if seconds is None:
        unavailable["quiet_seconds"] = unavailable.get("quiet", "not quiet")
    return AllocatedGpu(
        index=gpu.index,
        uuid=gpu.uuid,
        name=gpu.name,
        state=gpu.state,
        memory_used_bytes=gpu.memory_used_bytes,
        memory_total_bytes=gpu.memory_total_bytes,
        utilization_percent=gpu.utilization_gpu_percent,
        quiet=quiet,
        quiet_seconds=seconds,
        mig=tuple(map(_mig, gpu.mig_devices)),
        unavailable=unavailable,
    )


def _is_quiet(gpu: Gpu) -> bool | None:
    busy, used = gpu.utilization_gpu_percent, gpu.memory_used_bytes
    if (busy is not None and busy >= QUIET_PERCENT) or gpu.state != "ok":
        return False if gpu.state == "ok" else None
    if used is None or gpu.memory_reserved_bytes is None:
        return None
    if used > QUIET_BYTES:
        return False
    return None if busy is None else True


def _quiet_seconds(gpu: Gpu, snapshot: Snapshot, past: Past) -> float:
    """Since the earliest of the readings without a break in which it was quiet."""
    since = now = snapshot.fast_at or 0.0
    for earlier in reversed(past.recent):
        then = next((each for each in earlier.gpus if each.uuid == gpu.uuid), None)
        if then is None or not _is_quiet(then) or earlier.fast_at is None:
            break
        since = min(since, earlier.fast_at)
    return round(now - since, 1)


def _mig(mig: MigDevice) -> AllocatedMig:
    read = {
        "uuid": mig.uuid,
        "profile": mig.profile,
        "memory_used_bytes": mig.memory_used_bytes,
        "memory_total_bytes": mig.memory_total_bytes,
    }
    unavailable = {name: mig.unavailable[name] for name, value in read.items() if value is None}
    used = mig.memory_used_bytes
    if used is None:
        unavailable["quiet"] = unavailable["memory_used_bytes"]
    return AllocatedMig(
        uuid=mig.uuid,
        profile=mig.profile,
        memory_used_bytes=used,
        memory_total_bytes=mig.memory_total_bytes,
        quiet=None if used is None else used <= QUIET_BYTES,
        unavailable=unavailable,
    )
