"""Which GPUs a pod held, from what Kubernetes' own documents say."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from mcp_gpu.gpu.health.model import GpuVerdict
from mcp_gpu.workloads.documents import Document, parts, word
from mcp_gpu.workloads.failure.model import HeldGpu
from mcp_gpu.workloads.failure.scene import Scene
from mcp_gpu.workloads.slices import GPU_DRIVER, gpu_devices

__all__ = ["all_of_node", "indexed", "told_by_annotations", "told_by_claims", "told_by_status"]

_UUID: Final = re.compile(r"\b(?:GPU|MIG)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")

ALLOCATED: Final = "hami.io/vgpu-devices-allocated"
"""The annotation in which HAMi, which shares GPUs, says what it has given. Others say what a pod
wants, or wants none of."""

ANNOTATION_CHARS: Final = 4_096


def told_by_status(pod: Document) -> tuple[str, ...]:
    """The device plugin's ids in `allocatedResourcesStatus`, which Kubernetes has from 1.31 on."""
    return tuple(
        dict.fromkeys(
            word(device, "resourceID")
            for kind in ("containerStatuses", "initContainerStatuses")
            for status in parts(pod, "status", kind)
            for resource in parts(status, "allocatedResourcesStatus")
            if word(resource, "name").startswith("nvidia.com/")
            for device in parts(resource, "resources")
        )
    )


def told_by_annotations(pod: Document) -> tuple[str, ...]:
    """UUIDs that a scheduler has written into the pod's annotations, as its owner may, too."""
    note = word(pod, "metadata", "annotations", ALLOCATED)
    return tuple(dict.fromkeys(found[0] for found in _UUID.finditer(note[:ANNOTATION_CHARS])))


def told_by_claims(claims: Sequence[Document], slices: Sequence[Document]) -> tuple[HeldGpu, ...]:
    """What allocated ResourceClaims say, by the node's ResourceSlices."""
    known = gpu_devices(slices)
    found: dict[HeldGpu, None] = {}
    for claim in claims:
        shared = len(parts(claim, "status", "reservedFor")) > 1
        for result in parts(claim, "status", "allocation", "devices", "results"):
            # With adminAccess nothing is held: it is for monitoring.
            if word(result, "driver") == GPU_DRIVER and not result.get("adminAccess"):
                attributes = known.get((word(result, "pool"), word(result, "device")))
                if attributes is not None:
                    found[_claimed(attributes, shared)] = None
    return tuple(found)


def _claimed(attributes: Mapping[str, str], shared: bool) -> HeldGpu:
    uuid, parent = attributes.get("uuid", ""), attributes.get("parentUUID", "")
    if parent or uuid.startswith("MIG-"):
        mig = attributes.get("profile") or uuid
        return HeldGpu(gpu_index=None, uuid=parent or None, mig=mig, shared=shared)
    return HeldGpu(gpu_index=None, uuid=uuid or None, shared=shared)


def all_of_node(scene: Scene, gpus: Sequence[GpuVerdict]) -> tuple[HeldGpu, ...]:
    """Every GPU of the node, where the pod asked for as many as the node has."""
    wanted = scene.resources()
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
