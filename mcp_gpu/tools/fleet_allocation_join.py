"""What Kubernetes adds to what agents say of allocations: phases, owners, claims, guesses.

Only the pods that an answer names are asked about, each at most once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import anyio

from mcp_gpu.tools.allocation_account import accounted, totals
from mcp_gpu.tools.allocation_model import ContainerAllocation, HeldClaim
from mcp_gpu.tools.fleet_allocation_model import FleetNodeAllocation, FleetPod
from mcp_gpu.workloads.claims import ClaimedGpu, claimed_gpu
from mcp_gpu.workloads.pods import PodFacts, asking_pods, pod_facts
from mcp_gpu.workloads.reads import Gap, Reads, Workloads
from transports.text import visible

__all__ = ["Join"]

JOIN_SECONDS: Final = 8.0
"""For all that one call reads of Kubernetes."""

PODS: Final = 100
"""Pods that one call asks about, and claims: the API server has others to serve."""

GUESSED: Final = 20
"""Nodes that one call lists the pods of."""


@dataclass(slots=True)
class _Rest:
    """What may still be asked."""

    pods: int = PODS
    claims: int = PODS
    nodes: int = GUESSED


class Join:
    """Of one call.

    Args:
        workloads: the clusters to ask.
        wanted: whether a pod is asked for, by namespace and name; None: all are, so that holders
            can be counted anew.
    """

    def __init__(
        self, workloads: Workloads, wanted: Callable[[str, str], bool] | None = None
    ) -> None:
        self._workloads, self._wanted = workloads, wanted
        self._reads: dict[str, Reads] = {}
        self._rest = _Rest()

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """What could not be read."""
        return tuple(gap for reads in self._reads.values() for gap in reads.gaps)

    async def nodes(self, nodes: Sequence[FleetNodeAllocation]) -> tuple[FleetNodeAllocation, ...]:
        """The same nodes with what Kubernetes adds, as far as it answers in time."""
        joined = {node.node: node for node in nodes}

        async def one(node: FleetNodeAllocation) -> None:
            joined[node.node] = await self._node(node)

        with anyio.move_on_after(JOIN_SECONDS) as scope:
            async with anyio.create_task_group() as group:
                for node in nodes:
                    group.start_soon(one, node)
        if scope.cancelled_caught:
            for reads in self._reads.values():
                reads.miss("Kubernetes' word on all of these", f"not within {JOIN_SECONDS:g} s")
        return tuple(joined.values())

    async def _node(self, node: FleetNodeAllocation) -> FleetNodeAllocation:
        cluster, name = self._place(node.node)
        reads = self._reads.setdefault(cluster, self._workloads.reads(cluster))
        if node.source == "none":
            return await self._guessed(node, name, reads)
        facts: dict[int, FleetPod | None] = {}

        async def one(position: int, pod: FleetPod) -> None:
            facts[position] = await self._pod(pod, node, name, reads)

        async with anyio.create_task_group() as group:
            for position, pod in enumerate(node.pods):
                group.start_soon(one, position, pod)
        found = [facts[position] for position in range(len(node.pods))]
        pods = tuple(pod for pod in found if pod is not None)
        over = len(found) - len(pods)
        gpus = node.gpus
        counts = node.totals.model_copy(update={"pods": node.totals.pods - over})
        if self._wanted is None and not node.pods_omitted:
            gpus = accounted(gpus, pods)
            counts = totals(gpus, pods=counts.pods, strays=counts.strays)
        update = {"pods": pods, "gpus": gpus, "terminated": over, "totals": counts}
        return node.model_copy(update=update)

    def _place(self, node: str) -> tuple[str, str]:
        """The cluster, and the name that the node has there."""
        cluster, slash, name = node.partition("/")
        return (cluster, name) if slash and cluster in self._workloads.clusters else ("", node)

    async def _pod(
        self, pod: FleetPod, node: FleetNodeAllocation, name: str, reads: Reads
    ) -> FleetPod | None:
        """The pod as Kubernetes knows it; None for one that is over."""
        if not pod.pod or node.source == "simulated":  # Kubernetes knows none that are made up
            return pod
        if self._rest.pods <= 0:
            reads.miss("more pods", f"only the first {PODS} are asked about")
            return pod
        self._rest.pods -= 1
        facts = await pod_facts(reads, pod.namespace, pod.pod)
        containers = tuple(
            [await self._container(each, node, name, reads) for each in pod.containers]
        )
        pod = pod.model_copy(update={"containers": containers})
        if facts is None:
            unread = any(gap.what == f"pod {pod.namespace}/{pod.pod}" for gap in reads.gaps)
            unread |= not self._workloads.clusters
            return pod if unread else pod.model_copy(update={"phase": "gone"})
        other = pod.pod_uid not in (None, facts.uid) or facts.node != name
        if other:  # a successor of the same name
            return pod.model_copy(update={"phase": "gone"})
        if facts.is_over:
            return None
        return pod.model_copy(update=_said(facts))

    async def _container(
        self, container: ContainerAllocation, node: FleetNodeAllocation, name: str, reads: Reads
    ) -> ContainerAllocation:
        if not container.claims:
            return container
        claims = [await self._claim(each, node, name, reads) for each in container.claims]
        return container.model_copy(update={"claims": tuple(claims)})

    async def _claim(
        self, claim: HeldClaim, node: FleetNodeAllocation, name: str, reads: Reads
    ) -> HeldClaim:
        if self._rest.claims <= 0:
            reads.miss("more claims", f"only the first {PODS} are asked about")
            return claim
        self._rest.claims -= 1
        found = await claimed_gpu(
            reads,
            node=name,
            namespace=claim.namespace,
            claim=claim.name,
            pool=claim.pool,
            device=claim.device,
        )
        return claim.model_copy(update=_resolved(found, node))

    async def _guessed(
        self, node: FleetNodeAllocation, name: str, reads: Reads
    ) -> FleetNodeAllocation:
        if self._rest.nodes <= 0:
            reads.miss("pods of more nodes", f"only those of the first {GUESSED} are guessed")
            return node
        self._rest.nodes -= 1
        pods = tuple(
            FleetPod(
                namespace=visible(facts.namespace),
                pod=visible(facts.name),
                containers=tuple(
                    ContainerAllocation(container=visible(container), requested=asked)
                    for container, asked in facts.requested.items()
                ),
                guess=True,
                **_said(facts),
            )
            for facts in await asking_pods(reads, name)
            if self._wanted is None or self._wanted(facts.namespace, facts.name)
        )
        counts = node.totals.model_copy(update={"pods": len(pods)})
        return node.model_copy(update={"pods": pods, "totals": counts})


def _said(facts: PodFacts) -> dict[str, str]:
    return {
        "pod_uid": visible(facts.uid),
        "phase": visible(facts.phase),
        "owner": visible(facts.owner),
    }


def _resolved(found: ClaimedGpu, node: FleetNodeAllocation) -> dict[str, object]:
    uuid = None if found.gpu_uuid is None else visible(found.gpu_uuid)
    gpu = next((gpu for gpu in node.gpus if uuid is not None and gpu.uuid == uuid), None)
    return {
        "gpu_uuid": uuid,
        "gpu_index": None if gpu is None else gpu.index,
        "mig_uuid": None if found.mig_uuid is None else visible(found.mig_uuid),
        "mig_profile": None if found.mig_profile is None else visible(found.mig_profile),
        "admin": found.admin,
        "why": found.why,
    }
