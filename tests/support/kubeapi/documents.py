"""Kubernetes objects as the API server sends them, in what matters to discovery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "LABELS",
    "SELECTOR",
    "SERVICE",
    "Document",
    "endpoint",
    "endpoint_slice",
    "node",
    "pod",
    "running",
    "terminated",
    "waiting",
]

Document = dict[str, Any]

LABELS = {"app.kubernetes.io/name": "mcp-gpu", "app.kubernetes.io/component": "agent"}
SELECTOR = ",".join(f"{name}={value}" for name, value in LABELS.items())
SERVICE = "mcp-gpu-agents"


def endpoint(
    address: str, node: str, *, uid: str = "", pod: str = "", **conditions: bool
) -> Document:
    """An agent's endpoint, ready unless told otherwise."""
    return {
        "addresses": [address],
        "conditions": {"ready": True, "serving": True, "terminating": False} | conditions,
        "nodeName": node,
        "targetRef": {"kind": "Pod", "name": pod or f"agent-{node}", "uid": uid or f"uid-{node}"},
    }


def endpoint_slice(
    name: str,
    endpoints: Sequence[Document],
    *,
    family: str = "IPv4",
    port: int | None = 8080,
    labels: Mapping[str, str] | None = None,
) -> Document:
    """A slice of the agents' headless Service."""
    named = {"kubernetes.io/service-name": SERVICE}
    ports = [] if port is None else [{"name": "mcp", "port": port, "protocol": "TCP"}]
    return {
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"name": name, "labels": named | dict(LABELS if labels is None else labels)},
        "addressType": family,
        "endpoints": list(endpoints),
        "ports": ports,
    }


def running() -> Document:
    return {"running": {"startedAt": "2026-01-01T00:00:00Z"}}


def waiting(reason: str, message: str = "") -> Document:
    return {"waiting": {"reason": reason} | ({"message": message} if message else {})}


def terminated(code: int, reason: str = "Error") -> Document:
    return {"terminated": {"exitCode": code, "reason": reason}}


def pod(
    node: str,
    *,
    name: str = "",
    uid: str = "",
    phase: str = "Running",
    ready: bool = False,
    state: Document | None = None,
    last_state: Document | None = None,
    restarts: int = 0,
    placed: bool = True,
    deleted: bool = False,
    **status: Any,
) -> Document:
    """An agent's pod. Without a `state` its container has no status yet.

    Args:
        placed: a scheduler has put it on the node; otherwise a DaemonSet has made it for it.
        status: more of its status, such as `reason` or `conditions`.
    """
    metadata: Document = {"name": name or f"agent-{node}", "labels": dict(LABELS)}
    metadata["uid"] = uid or f"uid-{node}"
    if deleted:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    field = {"key": "metadata.name", "operator": "In", "values": [node]}
    terms = {"nodeSelectorTerms": [{"matchFields": [field]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    spec: Document = {"affinity": affinity, "containers": [{"name": "agent", "image": "mcp-gpu"}]}
    if placed:
        spec["nodeName"] = node
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    shown: Document = {"phase": phase, "conditions": conditions} | status
    if state is not None:
        container = {"name": "agent", "state": state, "restartCount": restarts, "ready": ready}
        if last_state is not None:
            container["lastState"] = last_state
        shown["containerStatuses"] = [container]
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": metadata,
        "spec": spec,
        "status": shown,
    }


def node(
    name: str,
    *,
    gpus: int = 8,
    labels: Mapping[str, str] | None = None,
    taints: Sequence[Document] = (),
    cordoned: bool = False,
    ready: str = "True",
    message: str = "",
) -> Document:
    """A node with so many GPUs, as the device plugin advertises them."""
    spec: Document = {"taints": list(taints)} | ({"unschedulable": True} if cordoned else {})
    condition = {"type": "Ready", "status": ready, "reason": "Kubelet", "message": message}
    capacity = {"cpu": "64"} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    return {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {"name": name, "labels": dict(labels or {})},
        "spec": spec,
        "status": {"capacity": capacity, "conditions": [condition]},
    }
