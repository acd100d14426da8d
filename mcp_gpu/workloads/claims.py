"""Which GPU a device of a ResourceClaim is, by the claim's allocation and the driver's slices.

Of resource.k8s.io/v1, which Kubernetes has since 1.34, as NVIDIA's driver wants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mcp_gpu.workloads.documents import parts
from mcp_gpu.workloads.reads import Reads
from mcp_gpu.workloads.slices import GPU_DRIVER, gpu_devices

__all__ = ["ClaimedGpu", "claimed_gpu", "monitored"]

PATH: Final = "/apis/resource.k8s.io/v1"

NO_SLICES: Final = "the node has no ResourceSlices, or none that may be read"

NO_UUID: Final = "UUID not published: the MIG instance is made when its pod starts"


@dataclass(frozen=True, slots=True)
class ClaimedGpu:
    """What is known of one device."""

    gpu_uuid: str | None = None
    """Of the GPU, or of a MIG instance's parent."""
    mig_uuid: str | None = None
    mig_profile: str | None = None
    admin: bool = False
    """Access for monitoring, which others' use does not exclude: nothing is held."""
    why: str = ""
    """What of this is not known, and why."""


async def claimed_gpu(
    reads: Reads, *, node: str, namespace: str, claim: str, pool: str, device: str
) -> ClaimedGpu:
    """What the claim's device is, by one GET of the claim and one list of the node's slices.

    Args:
        node: the Kubernetes node.
        pool: and `device`: as the kubelet or the claim's allocation names it.
    """
    admin = (pool, device) in await monitored(reads, namespace, claim)
    selector = f"spec.nodeName={node},spec.driver={GPU_DRIVER}"
    slices = await reads.list(PATH, "resourceslices", fieldSelector=selector)
    if not slices:
        return ClaimedGpu(admin=admin, why=NO_SLICES)
    attributes = gpu_devices(slices).get((pool, device))
    if attributes is None:
        return ClaimedGpu(admin=admin, why=f"no ResourceSlice of the node has {pool}/{device}")
    uuid, parent = attributes.get("uuid"), attributes.get("parentUUID")
    if attributes.get("type") == "mig" or parent is not None:
        why = NO_UUID if uuid is None else ""
        return ClaimedGpu(parent, uuid, attributes.get("profile"), admin, why)
    return ClaimedGpu(uuid, admin=admin, why="" if uuid else "its ResourceSlice has no UUID")


async def monitored(reads: Reads, namespace: str, claim: str) -> set[tuple[str, str]]:
    """The devices, by pool and name, of which a claim has access for monitoring, by one GET."""
    allocated = await reads.get(PATH, "resourceclaims", claim, namespace)
    return {
        (str(each.get("pool")), str(each.get("device")))
        for each in parts(allocated, "status", "allocation", "devices", "results")
        if each.get("driver") == GPU_DRIVER and each.get("adminAccess")
    }
