"""Who holds what, counted: each GPU's and MIG instance's holders, and what follows of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mcp_gpu.node.device_ids import is_whole_gpu_resource
from mcp_gpu.node.holdings import Device
from mcp_gpu.tools.allocation_model import (
    AllocatedGpu,
    AllocatedMig,
    AllocationTotals,
    HeldClaim,
    PodAllocation,
)

__all__ = ["accounted", "holds", "totals"]

LOOSE = "devices are held of which it is not known what GPU they are"


@dataclass(slots=True)
class _Count:
    gpus: Counter[int] = field(default_factory=Counter)
    """By index: containers that hold it or an instance of it."""
    instances: Counter[str] = field(default_factory=Counter)
    """By UUID."""
    replicated: set[int] = field(default_factory=set)
    cut: set[int] = field(default_factory=set)
    """Of which some instance is held, and not known which."""
    loose: bool = False
    """Something is held, and not known what."""


def accounted(
    gpus: Sequence[AllocatedGpu], pods: Sequence[PodAllocation], *, why: str = ""
) -> tuple[AllocatedGpu, ...]:
    """The GPUs with their holders.

    Args:
        why: why nothing is known of holders; empty if these pods are all there are.
    """
    if why:
        unknown = dict.fromkeys(("holders", "shared", "idle", "free"), why)
        return tuple(_with(gpu, dict.fromkeys(unknown), unknown) for gpu in gpus)
    count = _count(gpus, pods)
    return tuple(_accounted(gpu, count) for gpu in gpus)


def totals(gpus: Sequence[AllocatedGpu], *, pods: int, strays: int) -> AllocationTotals:
    """Of one node, whose GPUs these all are."""
    return AllocationTotals(
        pods=pods,
        gpus=len(gpus),
        held=sum(bool(gpu.holders) for gpu in gpus),
        idle=sum(bool(gpu.idle) for gpu in gpus),
        free=sum(bool(gpu.free) for gpu in gpus),
        unknown=sum(gpu.holders is None for gpu in gpus),
        strays=strays,
    )


def holds(pod: PodAllocation, gpu: AllocatedGpu) -> bool:
    """Whether one of the pod's containers holds the GPU or an instance of it."""
    return any(_means(each, gpu) for each in _held(pod))


def _held(pod: PodAllocation) -> Iterator[Device | HeldClaim]:
    for container in pod.containers:
        yield from container.devices
        yield from (claim for claim in container.claims if not claim.admin)


def _means(held: Device | HeldClaim, gpu: AllocatedGpu) -> bool:
    if held.gpu_uuid is not None and gpu.uuid is not None:
        return held.gpu_uuid == gpu.uuid
    return held.gpu_index == gpu.index


def _count(gpus: Sequence[AllocatedGpu], pods: Sequence[PodAllocation]) -> _Count:
    count = _Count()
    for pod in pods:
        for container in pod.containers:
            one = pod.model_copy(update={"containers": (container,)})
            mine, instances = set[int](), set[str]()
            for held in _held(one):
                meant = [gpu for gpu in gpus if _means(held, gpu)]
                mine.update(gpu.index for gpu in meant)
                if not meant:
                    count.loose |= isinstance(held, HeldClaim) or _surely_a_gpu(held)
                if held.mig_uuid is not None:
                    instances.add(held.mig_uuid)
                elif held.mig_profile is not None:
                    count.cut.update(gpu.index for gpu in meant)
                if isinstance(held, Device) and held.replica is not None:
                    count.replicated.update(gpu.index for gpu in meant)
            count.gpus.update(mine)
            count.instances.update(instances)
    return count


def _surely_a_gpu(device: Device) -> bool:
    # One that names a GPU which is not seen is none of those that are.
    return device.gpu_uuid is None and is_whole_gpu_resource(device.resource)


def _accounted(gpu: AllocatedGpu, count: _Count) -> AllocatedGpu:
    holders = count.gpus[gpu.index]
    if not holders and count.loose:
        unknown = dict.fromkeys(("holders", "shared", "idle", "free"), LOOSE)
        return _with(gpu, dict.fromkeys(unknown), unknown)
    values: dict[str, object] = {
        "holders": holders,
        "shared": holders > 1 or gpu.index in count.replicated,
        "idle": gpu.quiet if holders else False,
        "free": not holders and gpu.state == "ok",
        "mig": tuple(
            _instance(each, count.instances, doubt=count.loose or gpu.index in count.cut)
            for each in gpu.mig
        ),
    }
    unknown = {"idle": gpu.unavailable.get("quiet", "")} if values["idle"] is None else {}
    return _with(gpu, values, unknown)


def _instance(mig: AllocatedMig, holders: Counter[str], *, doubt: bool) -> AllocatedMig:
    count = holders[mig.uuid] if mig.uuid else 0
    if not count and (doubt or mig.uuid is None):
        unknown = dict.fromkeys(("holders", "idle", "free"), LOOSE)
        values: dict[str, object] = dict.fromkeys(unknown)
    else:
        idle = mig.quiet if count else False
        values = {"holders": count, "idle": idle, "free": not count}
        unknown = {"idle": mig.unavailable.get("quiet", "")} if idle is None else {}
    return mig.model_copy(update={**values, "unavailable": _reasons(mig, values, unknown)})


def _with(gpu: AllocatedGpu, values: dict[str, object], unknown: dict[str, str]) -> AllocatedGpu:
    if "mig" not in values:
        of_mig: dict[str, object] = {name: None for name in unknown if name != "shared"}
        reasons = {name: unknown[name] for name in of_mig}
        mig = tuple(
            each.model_copy(update={**of_mig, "unavailable": _reasons(each, of_mig, reasons)})
            for each in gpu.mig
        )
        values = {**values, "mig": mig}
    return gpu.model_copy(update={**values, "unavailable": _reasons(gpu, values, unknown)})


def _reasons(
    told: AllocatedGpu | AllocatedMig, values: dict[str, object], unknown: dict[str, str]
) -> dict[str, str]:
    """Those of the readings, and of the counts those that hold now."""
    return {k: v for k, v in told.unavailable.items() if k not in values} | unknown
