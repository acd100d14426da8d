"""A node as Kubernetes has it: `ClusterNode`, and what has been said of it lately: `NodeEvent`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Final

from pydantic import Field

from mcp_gpu.fleet.diagnosis.nodes import GROUP_LABELS, read_node_facts
from mcp_gpu.fleet.discovery.nodes import GPU_RESOURCES, read_node
from mcp_gpu.gpu.wire import Wire
from mcp_gpu.gpu.xid.report import utc
from mcp_gpu.workloads.counts.model import Advertised
from mcp_gpu.workloads.documents import Document, moment, number, part, parts, word
from mcp_gpu.workloads.reads import Reads
from transports.text import one_line

__all__ = ["ClusterNode", "Condition", "NodeEvent", "node_events", "read_cluster_node"]

EVENTS_SECONDS: Final = 3600.0
"""How far back events are told; the API server keeps them about as long."""

EVENTS: Final = 20
"""Groups of events told, the latest."""

LABELS: Final = 40
TAINTS: Final = 20
CONDITIONS: Final = 30
NAME_CHARS: Final = 200
MESSAGE_CHARS: Final = 300

_LABELS: Final = (
    "nvidia.com/gpu.",
    "nvidia.com/mig",
    "nvidia.com/cuda.",
    "nvidia.com/vgpu.",
    "nvidia.com/mps.",
    "topology.kubernetes.io/",
    "network.topology.nvidia.com/",
    "node.kubernetes.io/instance-type",
    "cloud.google.com/gke-gpu",
    "cloud.google.com/gke-accelerator",
    "cloud.google.com/gke-max-shared-clients-per-gpu",
    "k8saas.nvidia.com/",
    *GROUP_LABELS,
)
"""What the names of labels begin with that matter to who looks for GPUs."""

_DEPLOY: Final = "nvidia.com/gpu.deploy."
"""The operator's own switches: many, and of no use to a reader while they are `true`."""

_OTHERS: Final = ("cpu", "memory", "pods", "ephemeral-storage", "hugepages-1Gi", "hugepages-2Mi")
"""Resources that are told beside GPUs."""


class Condition(Wire):
    """One condition of the node."""

    type: str
    status: str
    reason: str
    message: str
    since: str = Field(description="In UTC; empty: not told.")
    good: bool = Field(description="As it is on a node that is well.")


class ClusterNode(Wire):
    """The node object, in what matters to who looks for GPUs."""

    name: str
    ready: bool | None = Field(description="Null: Kubernetes itself does not know.")
    cordoned: bool
    trouble: str = Field(description="Why it is not ready; empty: it is.")
    conditions: tuple[Condition, ...] = Field(description="Those that are not good come first.")
    taints: tuple[str, ...]
    labels: dict[str, str] = Field(
        description="Those of GPUs, MIG, topology, instance type and node group."
    )
    labels_omitted: int
    addresses: tuple[str, ...]
    zone: str
    group: str = Field(description="Node group or pool; empty: not told.")
    kernel: str
    os: str
    runtime: str
    kubelet: str
    architecture: str
    created: str
    capacity: dict[str, str]
    allocatable: dict[str, str]
    gpu_capacity: dict[str, int] = Field(description="Resource of GPUs to devices.")
    gpu_allocatable: dict[str, int]

    def advertised(self) -> Advertised:
        """What it says of GPUs."""
        return Advertised(self.gpu_capacity, self.gpu_allocatable, self.labels)


class NodeEvent(Wire):
    """All events of one kind in the last hour."""

    type: str
    reason: str
    source: str
    count: int
    last: str = Field(description="In UTC.")
    message: str = Field(description="Of the last of them.")


def read_cluster_node(document: Document) -> ClusterNode:
    """Reduce a node to what its page tells."""
    facts, node = read_node_facts(document), read_node(document)
    status, info = part(document, "status"), part(document, "status", "nodeInfo")
    labels = {
        name: value
        for name, value in sorted(_texts(part(document, "metadata", "labels")).items())
        if name.startswith(_LABELS) and not (name.startswith(_DEPLOY) and value == "true")
    }
    capacity, allocatable = _texts(part(status, "capacity")), _texts(part(status, "allocatable"))
    conditions = sorted(map(_condition, parts(status, "conditions")), key=lambda each: each.good)
    ready = next((each.status for each in conditions if each.type == "Ready"), "Unknown")
    taints = [
        one_line(
            f"{word(each, 'key')}{'=' if word(each, 'value') else ''}{word(each, 'value')}"
            f":{word(each, 'effect')}",
            NAME_CHARS,
        )
        for each in parts(document, "spec", "taints")
    ]
    return ClusterNode(
        name=one_line(facts.name, NAME_CHARS),
        ready={"True": True, "False": False}.get(ready),
        cordoned=bool(part(document, "spec").get("unschedulable")),
        trouble=one_line(node.trouble, MESSAGE_CHARS),
        conditions=tuple(conditions[:CONDITIONS]),
        taints=tuple(taints[:TAINTS]),
        labels=dict(list(labels.items())[:LABELS]),
        labels_omitted=max(len(labels) - LABELS, 0),
        addresses=facts.addresses,
        zone=one_line(facts.zone, NAME_CHARS),
        group=one_line(facts.group, NAME_CHARS),
        kernel=one_line(facts.kernel, NAME_CHARS),
        os=one_line(word(info, "osImage"), NAME_CHARS),
        runtime=one_line(word(info, "containerRuntimeVersion"), NAME_CHARS),
        kubelet=one_line(word(info, "kubeletVersion"), NAME_CHARS),
        architecture=one_line(word(info, "architecture"), NAME_CHARS),
        created=word(document, "metadata", "creationTimestamp")[:NAME_CHARS],
        capacity={name: capacity[name] for name in _OTHERS if name in capacity},
        allocatable={name: allocatable[name] for name in _OTHERS if name in allocatable},
        gpu_capacity=_gpus(capacity),
        gpu_allocatable=_gpus(allocatable),
    )


async def node_events(reads: Reads, name: str, now: float) -> tuple[NodeEvent, ...] | None:
    """What was said of the node in the last hour, those alike once, the latest first; None where
    it cannot be read, which is then a gap."""
    selector = f"involvedObject.kind=Node,involvedObject.name={name}"
    found = await reads.list("/api/v1", "events", "default", fieldSelector=selector)
    if not found and reads.missed("events") is not None:
        return None
    alike: defaultdict[tuple[str, str, str], list[tuple[float, Document]]] = defaultdict(list)
    for event in found:
        at = _time(event)
        if at is not None and now - at <= EVENTS_SECONDS:
            source = word(event, "reportingComponent") or word(event, "source", "component")
            alike[word(event, "type"), word(event, "reason"), source].append((at, event))
    groups = [
        NodeEvent(
            type=one_line(type_, NAME_CHARS),
            reason=one_line(reason, NAME_CHARS),
            source=one_line(source, NAME_CHARS),
            count=sum(_count(event) for _, event in members),
            last=utc(max(at for at, _ in members)),
            message=one_line(word(max(members, key=_first)[1], "message"), MESSAGE_CHARS),
        )
        for (type_, reason, source), members in alike.items()
    ]
    return tuple(sorted(groups, key=lambda each: each.last, reverse=True)[:EVENTS])


def _first(member: tuple[float, Document]) -> float:
    return member[0]


def _time(event: Document) -> float | None:
    """When it came last, wherever the two kinds of events say so."""
    for path in (("series", "lastObservedTime"), ("lastTimestamp",), ("eventTime",)):
        if (at := moment(event, *path)) is not None:
            return at
    return moment(event, "metadata", "creationTimestamp")


def _count(event: Document) -> int:
    return max(number(event, "series", "count"), number(event, "count"), 1)


def _condition(document: Document) -> Condition:
    kind, status = word(document, "type"), word(document, "status")
    since = moment(document, "lastTransitionTime")
    return Condition(
        type=one_line(kind, NAME_CHARS),
        status=one_line(status, NAME_CHARS),
        reason=one_line(word(document, "reason"), NAME_CHARS),
        message=one_line(word(document, "message"), MESSAGE_CHARS),
        since="" if since is None else utc(since),
        # Ready, and what is named after it, is good when it is true: all others name a trouble.
        good=status == ("True" if kind.endswith("Ready") else "False"),
    )


def _texts(document: Document) -> dict[str, str]:
    return {
        one_line(str(name), NAME_CHARS): one_line(str(value), NAME_CHARS)
        for name, value in document.items()
    }


def _gpus(resources: Mapping[str, str]) -> dict[str, int]:
    return {name: number(resources, name) for name in resources if name.startswith(GPU_RESOURCES)}
