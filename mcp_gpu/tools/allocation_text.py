"""Which pods hold which GPUs, for a model's or a person's eye."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, TypeVar

from mcp_gpu.node.holdings import Device, Source
from mcp_gpu.tools.allocation_model import (
    AllocatedGpu,
    ContainerAllocation,
    HeldClaim,
    NodeAllocation,
    PodAllocation,
    Stray,
)
from mcp_gpu.tools.spans import clipped, counted, numbers
from transports.text import quoted

__all__ = [
    "device_words",
    "gib",
    "gpu_notes",
    "gpu_words",
    "headline",
    "idle_words",
    "node_lines",
    "notes",
    "pod_lines",
    "pod_name",
    "stray_words",
]

WHY_CHARS = 300

P = TypeVar("P", bound=PodAllocation)


def node_lines(allocation: NodeAllocation) -> Iterator[str]:
    """One node: what is held, idle and free, then pod by pod."""
    yield headline(allocation)
    if allocation.simulated:
        yield "SIMULATED: no real hardware stands behind the GPUs."
    yield from notes(allocation)
    yield from pod_lines(allocation, allocation.pods, pod_name)
    if allocation.pods_omitted:
        yield f"{counted(allocation.pods_omitted, 'more pod')}: ask with namespace or pod"
    yield from gpu_notes(allocation)


_SAYS: Final[dict[Source, str]] = {
    "pod_resources": "the kubelet",
    "checkpoint": "the kubelet's checkpoint",
    "simulated": "the simulator, of pods made up",
}


def headline(allocation: NodeAllocation) -> str:
    """`n1: 2 pods hold 3 of 8 GPUs, 1 idle; 5 free (as the kubelet says)`."""
    totals = allocation.totals
    if allocation.source == "none":
        return f"{allocation.node}: holders UNKNOWN of {counted(totals.gpus, 'GPU')}"
    every = counted(totals.gpus, "GPU")
    parts = [f"{counted(totals.pods, 'pod')} on {totals.held} of {every}"]
    parts += [f"{totals.idle} idle"] if totals.idle else []
    parts += [f"{totals.free} free"]
    parts += [f"{totals.unknown} unknown"] if totals.unknown else []
    says = _SAYS[allocation.source]
    asked = len(allocation.pods) + allocation.pods_omitted
    some = "" if asked == totals.pods else f"; asked for: {counted(asked, 'pod')}"
    return f"{allocation.node}: {', '.join(parts)} (says {says}){some}"


def notes(allocation: NodeAllocation, *, whys: bool = True) -> Iterator[str]:
    """What is missing.

    Args:
        whys: with the reason why not all is known of holders.
    """
    if allocation.message is not None:
        yield f"! {allocation.message}"
    if allocation.why and whys:
        yield clipped(f"! {allocation.why}", WHY_CHARS)


def pod_lines(
    allocation: NodeAllocation, pods: Iterable[P], name: Callable[[P], str]
) -> Iterator[str]:
    """What each container holds.

    Args:
        name: what a pod is called.
    """
    gpus = {gpu.index: gpu for gpu in allocation.gpus}
    for pod in pods:
        for container in pod.containers:
            yield f"{name(pod)} {container.container}: {_container(container, gpus)}"


def gpu_notes(allocation: NodeAllocation) -> Iterator[str]:
    """What is free, and what runs outside of any allocation."""
    free = [gpu.index for gpu in allocation.gpus if gpu.free]
    if free:
        yield f"free: GPU {numbers(free)}"
    for gpu in allocation.gpus:
        instances = [mig.profile or "?" for mig in gpu.mig if mig.free]
        if instances and not gpu.free:
            yield f"free on GPU {gpu.index}: MIG {', '.join(instances)}"
    yield from map(stray_words, allocation.strays)
    if "strays" in allocation.unavailable:
        yield f"strays unknown: {allocation.unavailable['strays']}"


def stray_words(stray: Stray) -> str:
    """One process outside of any allocation."""
    whose = "of the node itself" if stray.pod_uid is None else f"of pod uid {stray.pod_uid}"
    used = "" if stray.memory_bytes is None else f", {gib(stray.memory_bytes)} GiB"
    return (
        f"STRAY on GPU {stray.gpu_index}: pid {stray.pid} {quoted(stray.command, 80)} {whose}{used}"
    )


def pod_name(pod: PodAllocation) -> str:
    """`namespace/name`, or what is known of it."""
    return f"{pod.namespace}/{pod.pod}" if pod.pod else f"pod uid {pod.pod_uid}"


def _container(container: ContainerAllocation, gpus: Mapping[int, AllocatedGpu]) -> str:
    held: list[Device | HeldClaim] = [*container.devices, *container.claims]
    told = [_held(each, gpus) for each in held]
    told += [f"asks for {count} {name}" for name, count in container.requested.items()]
    return "; ".join(dict.fromkeys(told))


def _held(held: Device | HeldClaim, gpus: Mapping[int, AllocatedGpu]) -> str:
    gpu = None if held.gpu_index is None else gpus.get(held.gpu_index)
    what = device_words(held)
    if isinstance(held, HeldClaim) and held.admin:
        return f"{what} (for monitoring)"
    return f"{what} {gpu_words(gpu, whole=held.mig_profile is None)}" if gpu else what


def device_words(held: Device | HeldClaim) -> str:
    """`GPU 0`, `GPU 0 MIG 1g.10gb`, or the id as it is where no GPU is known for it."""
    mig = "" if held.mig_profile is None else f" MIG {held.mig_profile}"
    replica = getattr(held, "replica", None)
    share = "" if replica is None else f" (share {replica})"
    if held.gpu_index is not None:
        return f"GPU {held.gpu_index}{mig}{share}"
    if isinstance(held, HeldClaim):
        name = held.gpu_uuid or f"{held.pool}/{held.device}"
        return f"claim {held.name}: {name}{mig}" + (f" ({held.why})" if held.why else "")
    return f"{held.resource} {held.id}{mig}" + (f" ({held.why})" if held.why else "")


def gpu_words(gpu: AllocatedGpu, *, whole: bool = True) -> str:
    """`NVIDIA H100 80GB HBM3, 72 % busy, 51.6/79.6 GiB, IDLE for 300 s`."""
    parts = [gpu.name or "?"]
    if gpu.state != "ok":
        parts.append(gpu.state.upper())
    if whole and gpu.utilization_percent is not None:
        parts.append(f"{gpu.utilization_percent} % busy")
    if whole and gpu.memory_used_bytes is not None and gpu.memory_total_bytes is not None:
        parts.append(f"{gib(gpu.memory_used_bytes)}/{gib(gpu.memory_total_bytes)} GiB")
    if gpu.idle:
        parts.append(idle_words(gpu))
    if gpu.shared:
        parts.append(f"shared by {gpu.holders}")
    return f"({', '.join(parts)})"


def idle_words(gpu: AllocatedGpu) -> str:
    """`IDLE for 300 s`, or `IDLE now` where nothing is known of before."""
    return f"IDLE for {gpu.quiet_seconds:.0f} s" if gpu.quiet_seconds else "IDLE now"


def gib(size_bytes: int) -> str:
    """A size in GiB."""
    return f"{size_bytes / 2**30:.1f}"
