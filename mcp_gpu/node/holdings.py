"""Which pods hold which GPUs of this node, as the kubelet says: `Attribution`, `Holdings`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import anyio
from pydantic import Field

from mcp_gpu.gpu.model import Snapshot
from mcp_gpu.gpu.wire import Wire
from mcp_gpu.node.checkpoint import Checkpoint, CheckpointError, read_checkpoint
from mcp_gpu.node.device_ids import Devices, is_gpu_resource
from mcp_gpu.node.pod_resources import Allocation, PodResources, PodResourcesError

__all__ = ["Attribution", "Claim", "Device", "Holder", "Holdings"]

ANSWER_SECONDS: Final = 2.0
"""Longest wait of a caller. The kubelet answers from memory in milliseconds."""

CACHE_SECONDS: Final = 5.0
"""The kubelet takes 100 calls a second of all its clients together, 10 of them at once."""

DRA_DRIVER: Final = "gpu.nvidia.com"

Source = Literal["pod_resources", "checkpoint", "none"]


class Device(Wire):
    """One device of a device plugin that a container holds, joined to the node's GPUs."""

    id: str = Field(description="As the device plugin calls it.")
    resource: str = Field(description="Such as nvidia.com/gpu or nvidia.com/mig-1g.10gb.")
    gpu_uuid: str | None = Field(description="Of the GPU, or of a MIG instance's parent.")
    gpu_index: int | None
    mig_uuid: str | None
    mig_profile: str | None = Field(description="Such as 1g.10gb; null: a whole GPU.")
    replica: int | None = Field(description="Of a GPU that is shared; null: not shared.")
    why: str = Field(default="", description="Why the id fits no GPU; empty if it does.")


class Claim(Wire):
    """One device of a ResourceClaim that a container holds, as the kubelet tells it."""

    namespace: str
    name: str
    driver: str
    pool: str
    device: str
    cdi_ids: tuple[str, ...]


class Holder(Wire):
    """A container and what it holds of the node's GPUs."""

    namespace: str = Field(description="Empty where only the pod's uid is known.")
    pod: str = Field(description="Name; empty where only the uid is known.")
    pod_uid: str | None
    container: str
    devices: tuple[Device, ...]
    claims: tuple[Claim, ...]


class Holdings(Wire):
    """All of a node's."""

    source: Source
    why: str = Field(description="What is missing, and why; empty: nothing is.")
    holders: tuple[Holder, ...] = ()
    allocatable: dict[str, int] = Field(
        default_factory=dict, description="Resource to how many devices pods can be given."
    )
    age_seconds: float | None = None
