"""Which GPUs a pod held, from what Kubernetes' own documents say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from mcp_gpu.gpu.health.model import GpuVerdict
from mcp_gpu.workloads.documents import Document, part, parts, word
from mcp_gpu.workloads.failure.model import HeldGpu
from mcp_gpu.workloads.failure.scene import Scene
from transports.text import visible

__all__ = ["all_of_node", "indexed", "told_by_annotations", "told_by_claims", "told_by_status"]

_GKE: Final = re.compile(r"nvidia(\d+)(?:/(gi\d+|vgpu\d+))?")
_MIG: Final = re.compile(r"MIG-(?:(GPU-[0-9a-fA-F-]+)/\d+/\d+|[0-9a-fA-F-]+)")
_UUID: Final = re.compile(r"\b(?:GPU|MIG)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
ANNOTATION_CHARS: Final = 4_096
_DRIVER: Final = "gpu.nvidia.com"


def told_by_status(pod: Document) -> tuple[HeldGpu, ...]:
    """What `allocatedResourcesStatus` says, which Kubernetes has from 1.31 on."""
    return tuple(dict.fromkeys(_of_status(pod)))


def _of_status(pod: Document) -> Iterator[HeldGpu]:
    for kind in ("containerStatuses", "initContainerStatuses"):
        for status in parts(pod, "status", kind):
            for resource in parts(status, "allocatedResourcesStatus"):
                if word(resource, "name").startswith("nvidia.com/"):
                    for device in parts(resource, "resources"):
                        yield _device(word(device, "resourceID"))


def _device(device_id: str) -> HeldGpu:
    """A device plugin's id: `GPU-...`, `MIG-...`, `id::replica`, `nvidia3/gi2`, or an index."""
    base, separator, _ = visible(device_id).partition("::")
    shared = bool(separator)
    mig = _MIG.fullmatch(base)
    if mig is not None:
        return HeldGpu(gpu_index=None, uuid=mig[1], mig=base, shared=shared)
    gke = _GKE.fullmatch(base)
    if gke is not None:
        part_ = gke[2] or ""
        return HeldGpu(
            gpu_index=int(gke[1][:4]),
            uuid=None,
            mig=part_ if part_.startswith("gi") else "",
            shared=shared or part_.startswith("vgpu"),
        )
    if base.isascii() and base.isdecimal():
        return HeldGpu(gpu_index=int(base[:4]), uuid=None, shared=shared)
    return HeldGpu(gpu_index=None, uuid=base, shared=shared)


def told_by_annotations(pod: Document) -> tuple[HeldGpu, ...]:
    """GPUs that a scheduler or a device plugin has written into the pod's annotations."""
    notes = part(pod, "metadata", "annotations")
    ids = (
        found[0]
        for key, value in notes.items()
        if "gpu" in key.lower() and isinstance(value, str)
        for found in _UUID.finditer(value[:ANNOTATION_CHARS])
    )
    return tuple(dict.fromkeys(map(_device, ids)))


def told_by_claims(claims: Sequence[Document], slices: Sequence[Document]) -> tuple[HeldGpu, ...]:
    """What allocated ResourceClaims say, by the node's ResourceSlices."""
    known = dict(_published(slices))
    found: dict[HeldGpu, None] = {}
    for claim in claims:
        shared = len(parts(claim, "status", "reservedFor")) > 1
        for result in parts(claim, "status", "allocation", "devices", "results"):
            # With adminAccess nothing is held: it is for monitoring.
            if word(result, "driver") == _DRIVER and not result.get("adminAccess"):
                held = known.get((word(result, "pool"), word(result, "device")))
                if held is not None:
                    found[held.model_copy(update={"shared": shared})] = None
    return tuple(found)


def _published(slices: Sequence[Document]) -> Iterator[tuple[tuple[str, str], HeldGpu]]:
    for published in slices:
        pool = word(published, "spec", "pool", "name")
        for device in parts(published, "spec", "devices"):
            attributes = part(device, "attributes") or part(device, "basic", "attributes")
            uuid, parent = _text(attributes, "uuid"), _text(attributes, "parentUUID")
            if parent or uuid.startswith("MIG-"):
                profile = _text(attributes, "profile") or uuid
                held = HeldGpu(gpu_index=None, uuid=parent or None, mig=profile)
            else:
                held = HeldGpu(gpu_index=None, uuid=uuid or None)
            yield (pool, word(device, "name")), held


def _text(attributes: Document, name: str) -> str:
    return word(attributes, name, "string") or word(attributes, f"{_DRIVER}/{name}", "string")


def all_of_node(scene: Scene, gpus: Sequence[GpuVerdict]) -> tuple[HeldGpu, ...]:
    """Every GPU of the node, where the pod asked for as many as the node has."""
    wanted = dict(scene.resources())
    count = wanted.get("nvidia.com/gpu", 0)
    capacity = word(scene.node, "status", "capacity", "nvidia.com/gpu")
    if not count or len(wanted) > 1 or str(count) != capacity or count != len(gpus):
        return ()
    return tuple(HeldGpu(gpu_index=gpu.gpu_index, uuid=gpu.uuid) for gpu in gpus)


def indexed(held: Sequence[HeldGpu], indices: Mapping[str, int]) -> tuple[HeldGpu, ...]:
    """The same with the agent's indices, where it knows the uuid."""
    return tuple(
        each.model_copy(update={"gpu_index": indices[each.uuid]})
        if each.gpu_index is None and each.uuid is not None and each.uuid in indices
        else each
        for each in held
    )
