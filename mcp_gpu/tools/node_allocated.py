"""What pods hold of one node: by its agent, which asks the kubelet, else by what pods ask for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import anyio

from mcp_gpu.fleet.router import Router
from mcp_gpu.gpu.wire import Wire
from mcp_gpu.tools.fleet_node_model import Allocated
from mcp_gpu.workloads.claims import monitored
from mcp_gpu.workloads.documents import Document, word
from mcp_gpu.workloads.pods import is_over, requested
from mcp_gpu.workloads.reads import Reads
from transports.text import one_line

__all__ = ["by_agent", "by_requests"]

TOOL: Final = "get_pod_gpu_allocation"

PODS: Final = 32
"""Told by name."""

CLAIMS: Final = 64
"""That one call asks about: the API server has others to serve."""

NAME_CHARS: Final = 200


class _Device(Wire):
    id: str
    resource: str


class _Claim(Wire):
    namespace: str
    name: str
    driver: str
    pool: str
    device: str

    @property
    def object(self) -> tuple[str, str]:
        """Namespace and name of the ResourceClaim."""
        return self.namespace, self.name


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


async def by_agent(router: Router, node: str, reads: Reads) -> Allocated | None:
    """By what the kubelet has given out; None where the agent does not know.

    Args:
        reads: of the node's cluster, whose claims tell what is for monitoring alone.

    Raises:
        DiscoveryError: no agents are known at all.
        UnknownNodes: nor is one of this node.
    """
    found = await router.fan_out(TOOL, {}, _Holders, nodes=[node])
    if not found.answers or found.answers[0].data.source == "none":
        return None
    holders = found.answers[0].data
    every = [claim for pod in holders.pods for one in pod.containers for claim in one.claims]
    watched = await _monitored(reads, [each.object for each in every])
    # Access for monitoring takes nothing from anybody.
    held = {each for each in every if (*each.object, each.pool, each.device) not in watched}
    pods = [
        pod
        for pod in holders.pods
        if any(one.devices or not held.isdisjoint(one.claims) for one in pod.containers)
    ]
    devices = {
        (device.resource, device.id)
        for pod in pods
        for one in pod.containers
        for device in one.devices
    }
    resources = Counter(resource for resource, _ in devices)
    claimed = {(each.driver, each.pool, each.device) for each in held}
    resources.update(driver for driver, _, _ in claimed)
    names = [f"{pod.namespace}/{pod.pod}" if pod.pod else f"uid {pod.pod_uid}" for pod in pods]
    return _told(
        dict(resources), names, guess=False, source=holders.source, more=holders.pods_omitted
    )


async def _monitored(
    reads: Reads, claims: Sequence[tuple[str, str]]
) -> set[tuple[str, str, str, str]]:
    """Namespace and name of claims, and pool and name of the devices that they only monitor."""
    watched: set[tuple[str, str, str, str]] = set()

    async def look(namespace: str, name: str) -> None:
        devices = await monitored(reads, namespace, name)
        watched.update((namespace, name, pool, device) for pool, device in devices)

    distinct = list(dict.fromkeys(claims))
    async with anyio.create_task_group() as tasks:
        for claim in distinct[:CLAIMS]:
            tasks.start_soon(look, *claim)
    if len(distinct) > CLAIMS:
        reads.miss("more claims", f"only the first {CLAIMS} are asked about")
    return watched


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
