"""Which GPU a device of a ResourceClaim is, by the claim's allocation and the driver's slices.

Of resource.k8s.io/v1, which Kubernetes has since 1.34, as NVIDIA's driver wants.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mcp_gpu.workloads.reads import Document, Reads

__all__ = ["ClaimedGpu", "claimed_gpu"]

PATH: Final = "/apis/resource.k8s.io/v1"
DRIVER: Final = "gpu.nvidia.com"

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
    allocated = await reads.get(PATH, "resourceclaims", claim, namespace)
    admin = _is_admin(allocated, pool, device)
    selector = f"spec.nodeName={node},spec.driver={DRIVER}"
    slices = await reads.list(PATH, "resourceslices", fieldSelector=selector)
    if not slices:
        return ClaimedGpu(admin=admin, why=NO_SLICES)
    attributes = _attributes(slices, pool, device)
    if attributes is None:
        return ClaimedGpu(admin=admin, why=f"no ResourceSlice of the node has {pool}/{device}")
    uuid, parent = _text(attributes, "uuid"), _text(attributes, "parentUUID")
    if _text(attributes, "type") == "mig" or parent is not None:
        why = NO_UUID if uuid is None else ""
        return ClaimedGpu(parent, uuid, _text(attributes, "profile"), admin, why)
    return ClaimedGpu(uuid, admin=admin, why="" if uuid else "its ResourceSlice has no UUID")


def _is_admin(claim: Document | None, pool: str, device: str) -> bool:
    results = _dig(claim or {}, "status", "allocation", "devices").get("results")
    return any(
        bool(each.get("adminAccess"))
        for each in (results if isinstance(results, list) else ())
        if isinstance(each, dict)
        and (each.get("driver"), each.get("pool"), each.get("device")) == (DRIVER, pool, device)
    )


def _attributes(slices: tuple[Document, ...], pool: str, device: str) -> Document | None:
    """Those of the device, of the pool's newest generation: older slices are on their way out."""
    specs = [spec for spec in (_dig(each, "spec") for each in slices) if _pool(spec)[0] == pool]
    newest = max((_pool(spec)[1] for spec in specs), default=0)
    for spec in specs:
        devices = spec.get("devices")
        if _pool(spec)[1] != newest or not isinstance(devices, list):
            continue
        for each in devices:
            if isinstance(each, dict) and each.get("name") == device:
                return _dig(each, "attributes")
    return None


def _pool(spec: Document) -> tuple[str, int]:
    pool = _dig(spec, "pool")
    generation = pool.get("generation")
    return str(pool.get("name")), generation if isinstance(generation, int) else 0


def _text(attributes: Document, name: str) -> str | None:
    """An attribute, by its name alone or with the driver's domain before it."""
    value = _dig(attributes, name) or _dig(attributes, f"{DRIVER}/{name}")
    text = value.get("string")
    return text if isinstance(text, str) else None


def _dig(document: Document, *names: str) -> Mapping[str, Any]:
    for name in names:
        inner = document.get(name)
        document = inner if isinstance(inner, dict) else {}
    return document
