"""What Kubernetes says of a pod that holds a GPU, or asks for one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mcp_gpu.workloads.reads import Document, Reads

__all__ = ["PodFacts", "asking_pods", "pod_facts"]

PATH: Final = "/api/v1"

VENDOR: Final = "nvidia.com/"

OVER: Final = frozenset({"Succeeded", "Failed"})
"""Phases in which a pod holds nothing any more, whatever a kubelet still lists."""


@dataclass(frozen=True, slots=True)
class PodFacts:
    """Of one pod."""

    namespace: str
    name: str
    uid: str
    node: str
    phase: str
    owner: str
    """What controls it, as `Job/train-7`; empty: nothing."""
    requested: dict[str, dict[str, int]]
    """Container to resource to how many of a device plugin's GPUs it asks for."""

    @property
    def is_over(self) -> bool:
        """Whether it holds nothing any more."""
        return self.phase in OVER


async def pod_facts(reads: Reads, namespace: str, name: str) -> PodFacts | None:
    """The pod; None where there is none of that name, or it cannot be read."""
    pod = await reads.get(PATH, "pods", name, namespace)
    return None if pod is None else _facts(pod)


async def asking_pods(reads: Reads, node: str) -> tuple[PodFacts, ...]:
    """The pods on a node that ask for GPUs and may hold some."""
    found = await reads.list(PATH, "pods", fieldSelector=f"spec.nodeName={node}")
    facts = map(_facts, found)
    return tuple(each for each in facts if each.requested and not each.is_over)


def _facts(pod: Document) -> PodFacts:
    metadata, spec, status = (_part(pod, name) for name in ("metadata", "spec", "status"))
    # Of init containers those alone run on that are restarted.
    sidecars = (
        each for each in _items(spec, "initContainers") if each.get("restartPolicy") == "Always"
    )
    owners = [each for each in _items(metadata, "ownerReferences") if each.get("controller")]
    return PodFacts(
        namespace=str(metadata.get("namespace", "")),
        name=str(metadata.get("name", "")),
        uid=str(metadata.get("uid", "")),
        node=str(spec.get("nodeName", "")),
        phase=str(status.get("phase", "")),
        owner=f"{owners[0].get('kind')}/{owners[0].get('name')}" if owners else "",
        requested={
            str(container.get("name")): dict(asked)
            for container in (*_items(spec, "containers"), *sidecars)
            if (asked := _asked(container))
        },
    )


def _asked(container: Document) -> Counter[str]:
    # Of what cannot be overcommitted requests and limits are the same; one of them may be left out.
    resources = _part(container, "resources")
    asked = Counter[str]()
    for name in ("limits", "requests"):
        for resource, count in _part(resources, name).items():
            if resource.startswith(VENDOR) and str(count).isdecimal():
                asked[resource] = max(asked[resource], int(count))
    return +asked


def _part(document: Document, name: str) -> Mapping[str, Any]:
    part = document.get(name)
    return part if isinstance(part, dict) else {}


def _items(document: Document, name: str) -> list[Mapping[str, Any]]:
    items = document.get(name)
    return [each for each in items if isinstance(each, dict)] if isinstance(items, list) else []
