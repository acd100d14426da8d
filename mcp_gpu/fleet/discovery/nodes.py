"""Nodes of the cluster: which have GPUs, and what may keep an agent away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Node", "read_node"]

GPU_LABELS = ("nvidia.com/gpu.present", "feature.node.kubernetes.io/pci-10de.present")
"""Set by GPU feature discovery and by node feature discovery (10de is NVIDIA's PCI vendor id)."""

GPU_RESOURCES = ("nvidia.com/gpu", "nvidia.com/mig-")
"""What names of the device plugin's resources begin with: `nvidia.com/gpu`,
`nvidia.com/gpu.shared`, `nvidia.com/mig-1g.10gb`."""

TOLERATED = frozenset(
    f"node.kubernetes.io/{name}"
    for name in (
        "not-ready",
        "unreachable",
        "unschedulable",
        "disk-pressure",
        "memory-pressure",
        "pid-pressure",
    )
)
"""Taints that the DaemonSet controller lets its own pods tolerate."""


@dataclass(frozen=True, slots=True)
class Node:
    """What is kept of a node."""

    gpus: bool
    """Something says that it has NVIDIA GPUs."""
    trouble: str
    """Why it may be out of reach, in words; empty for nothing."""
    obstacles: str
    """What may keep an agent's pod away, in words; empty for nothing."""


def read_node(document: Mapping[str, Any]) -> Node:
    """Reduce a node to what is needed to miss an agent there and to say why."""
    spec, status = document.get("spec") or {}, document.get("status") or {}
    labels = document["metadata"].get("labels") or {}
    trouble = _not_ready(status)
    taints = [
        f"{taint['key']}{_value(taint)}:{taint['effect']}"
        for taint in spec.get("taints") or ()
        if taint["effect"] != "PreferNoSchedule" and taint["key"] not in TOLERATED
    ]
    obstacles = [trouble] if trouble else []
    if spec.get("unschedulable"):
        obstacles.append("the node is cordoned")
    if taints:
        obstacles.append(f"taints that agents may not tolerate: {', '.join(taints)}")
    return Node(
        gpus=_has_gpus(labels, status.get("capacity") or {}),
        trouble=trouble,
        obstacles="; ".join(obstacles),
    )


def _has_gpus(labels: Mapping[str, str], capacity: Mapping[str, str]) -> bool:
    return any(labels.get(label) == "true" for label in GPU_LABELS) or any(
        name.startswith(GPU_RESOURCES) and str(amount) != "0" for name, amount in capacity.items()
    )


def _not_ready(status: Mapping[str, Any]) -> str:
    for condition in status.get("conditions") or ():
        if condition.get("type") == "Ready" and condition.get("status") != "True":
            why = condition.get("message") or condition.get("reason") or "no reason given"
            return f"the node is not ready: {why}"
    return ""


def _value(taint: Mapping[str, Any]) -> str:
    return f"={taint['value']}" if taint.get("value") else ""
