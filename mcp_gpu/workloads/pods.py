"""What Kubernetes says of a pod that holds a GPU, or asks for one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from mcp_gpu.workloads.documents import Document, number, part, parts, word
from mcp_gpu.workloads.reads import Reads

__all__ = ["PodFacts", "asking_pods", "is_over", "pod_facts", "requested"]

PATH: Final = "/api/v1"

VENDOR: Final = "nvidia.com/"
"""What names of resources of NVIDIA's device plugin begin with, renamed ones and those of MIG
profiles too."""

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


def requested(pod: Document) -> dict[str, int]:
    """Devices that a pod asks for, by resource: its containers and sidecars together, or as many as
    an init container takes before them, with the sidecars that run already."""
    running, most = Counter[str](), Counter[str]()
    for container in parts(pod, "spec", "initContainers"):
        asked = _asked(container)
        if _is_sidecar(container):
            running += asked
        else:
            most |= running + asked
    for container in parts(pod, "spec", "containers"):
        running += _asked(container)
    return dict(most | running)


def is_over(pod: Document) -> bool:
    """Whether it holds nothing any more."""
    return word(pod, "status", "phase") in OVER


def _facts(pod: Document) -> PodFacts:
    # Of init containers those alone run on that are restarted.
    sidecars = filter(_is_sidecar, parts(pod, "spec", "initContainers"))
    owners = [each for each in parts(pod, "metadata", "ownerReferences") if each.get("controller")]
    return PodFacts(
        namespace=word(pod, "metadata", "namespace"),
        name=word(pod, "metadata", "name"),
        uid=word(pod, "metadata", "uid"),
        node=word(pod, "spec", "nodeName"),
        phase=word(pod, "status", "phase"),
        owner=f"{word(owners[0], 'kind')}/{word(owners[0], 'name')}" if owners else "",
        requested={
            word(container, "name"): dict(asked)
            for container in (*parts(pod, "spec", "containers"), *sidecars)
            if (asked := _asked(container))
        },
    )


def _is_sidecar(container: Document) -> bool:
    return word(container, "restartPolicy") == "Always"


def _asked(container: Document) -> Counter[str]:
    # Of what cannot be overcommitted requests and limits are the same; one of them may be left out.
    asked = Counter[str]()
    for name in ("limits", "requests"):
        resources = part(container, "resources", name)
        asked |= Counter(
            {each: number(resources, each) for each in resources if each.startswith(VENDOR)}
        )
    return +asked
