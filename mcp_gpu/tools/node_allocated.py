"""What pods hold of one node: by its agent, which asks the kubelet, else by what pods ask for."""

from __future__ import annotations

from collections import Counter
from typing import Final

from mcp_gpu.fleet.router import Router
from mcp_gpu.gpu.wire import Wire
from mcp_gpu.tools.fleet_node_model import Allocated
from mcp_gpu.workloads.documents import Document, word
from mcp_gpu.workloads.pods import is_over, requested
from mcp_gpu.workloads.reads import Reads
from transports.text import one_line

__all__ = ["by_agent", "by_requests"]

TOOL: Final = "get_pod_gpu_allocation"

PODS: Final = 32
"""Told by name."""

NAME_CHARS: Final = 200


class _Device(Wire):
    id: str
    resource: str


class _Claim(Wire):
    driver: str
    pool: str
    device: str
    admin: bool = False


class _Container(Wire):
    devices: tuple[_Device, ...] = ()
    claims: tuple[_Claim, ...] = ()


class _Pod(Wire):
    namespace: str
    pod: str
    pod_uid: str | None = None
    containers: tuple[_Container, ...]


class _Holders(Wire):
    """What is needed of an agent's answer to who holds its GPUs."""

    source: str
    pods: tuple[_Pod, ...]
    pods_omitted: int = 0


async def by_agent(router: Router, node: str) -> Allocated | None:
    """By what the kubelet has given out; None where the agent does not know.

    Raises:
        DiscoveryError: no agents are known at all.
        UnknownNodes: nor is one of this node.
    """
    found = await router.fan_out(TOOL, {}, _Holders, nodes=[node])
    if not found.answers or found.answers[0].data.source == "none":
        return None
    holders = found.answers[0].data
    containers = [each for pod in holders.pods for each in pod.containers]
    devices = {(each.resource, each.id) for one in containers for each in one.devices}
    claims = {
        (each.driver, each.pool, each.device)
        for one in containers
        for each in one.claims
        if not each.admin  # which takes nothing from anybody
    }
    resources = Counter(resource for resource, _ in devices)
    resources.update(driver for driver, _, _ in claims)
    names = [
        f"{pod.namespace}/{pod.pod}" if pod.pod else f"uid {pod.pod_uid}"
        for pod in holders.pods
        if any(one.devices or one.claims for one in pod.containers)
    ]
    return _told(
        dict(resources), names, guess=False, source=holders.source, more=holders.pods_omitted
    )


async def by_requests(reads: Reads, node: str) -> Allocated | None:
    """By what its pods ask for; None where they cannot be listed, which is then a gap."""
    pods = await reads.list("/api/v1", "pods", fieldSelector=f"spec.nodeName={node}")
    if not pods and reads.missed("pods") is not None:
        return None
    asking = [(pod, asked) for pod in pods if not is_over(pod) and (asked := requested(pod))]
    total = Counter[str]()
    for _, asked in asking:
        total.update(asked)
    names = [_name(pod) for pod, _ in asking]
    return _told(dict(total), names, guess=True, source="pods' requests")


def _told(
    resources: dict[str, int], names: list[str], *, guess: bool, source: str, more: int = 0
) -> Allocated:
    return Allocated(
        resources=resources,
        guess=guess,
        source=source,
        pods=tuple(names[:PODS]),
        pods_omitted=max(len(names) - PODS, 0) + more,
    )


def _name(pod: Document) -> str:
    whole = f"{word(pod, 'metadata', 'namespace')}/{word(pod, 'metadata', 'name')}"
    return one_line(whole, NAME_CHARS)
