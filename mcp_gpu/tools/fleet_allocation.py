"""`get_pod_gpu_allocation` as a gateway serves it: which pods of the fleet hold which GPUs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Final

from pydantic import Field

from mcp_gpu.fleet.router import FanOut, Router
from mcp_gpu.registry import Answer, Call, Tool
from mcp_gpu.tools.allocation import KubernetesName
from mcp_gpu.tools.allocation_account import holds
from mcp_gpu.tools.allocation_model import NAME, AllocationTotals, NodeAllocation
from mcp_gpu.tools.fleet_allocation_join import Join
from mcp_gpu.tools.fleet_allocation_model import (
    FleetAllocation,
    FleetNodeAllocation,
    FleetPod,
    Unattributed,
)
from mcp_gpu.tools.fleet_allocation_text import lines, nothing
from mcp_gpu.tools.fleet_answer import Place, begin, of_fleet, shared
from mcp_gpu.tools.fleet_arguments import FleetArguments, asked
from mcp_gpu.tools.inventory import Detail
from mcp_gpu.tools.pages import page, short
from mcp_gpu.tools.spans import clipped, spans
from mcp_gpu.workloads.reads import Workloads

__all__ = ["GatewayArguments", "gateway_tool", "whole"]

RANKS: Final = {"idle": 0, "unknown": 1, "rest": 2}
"""What nodes are sorted by: something to look into, nothing known, the others."""

PODS_LISTED: Final = 16
"""Pods per node in a summary; the node's totals are over all."""

GUESSES_LISTED: Final = 4
"""The same where it is a guess, which comes on top of what fits a page."""

GAPS_LISTED: Final = 20

REASONS_LISTED: Final = 8
"""Reasons why nodes cannot say who holds their GPUs."""

WHY_CHARS: Final = 60
"""Of such a reason beside each of the nodes in a summary."""


class GatewayArguments(FleetArguments):
    """What a gateway may be asked about allocations."""

    namespace: KubernetesName | None = Field(
        default=None, description="Only pods of this namespace."
    )
    pod: KubernetesName | None = Field(default=None, description="Only pods of this name.")
    detail: Detail = Field(
        default="summary", description="full: all pods and GPUs of each node listed."
    )

    @property
    def brief(self) -> bool:
        """Whether the whole fleet is asked about, with what is out of the ordinary alone."""
        return self.detail == "summary" and self.only is None and not self.narrow

    @property
    def narrow(self) -> bool:
        """Whether only some pods are asked for."""
        return self.namespace is not None or self.pod is not None

    def wants(self, namespace: str, pod: str) -> bool:
        """Whether a pod is asked for."""
        return self.namespace in (None, namespace) and self.pod in (None, pod)


def gateway_tool(router: Router, workloads: Workloads) -> Tool[GatewayArguments]:
    """The tool as a gateway serves it: all agents asked at once, one answer."""

    async def run(arguments: GatewayArguments, call: Call) -> Answer:
        start = begin(arguments.cursor, RANKS, tool=NAME)
        named = {"namespace": arguments.namespace, "pod": arguments.pod}
        found = await asked(
            router,
            NAME,
            {name: value for name, value in named.items() if value is not None},
            NodeAllocation,
            arguments,
            call,
        )
        told = await _page(found, arguments, start, workloads)
        failures = found.failures if start is None else ()
        text = [*lines(told, failures)]
        if arguments.brief:
            # The words above say of every GPU what it does and whether it is free.
            nodes = tuple(_shortened(node, arguments) for node in told.nodes)
            told = told.model_copy(update={"nodes": nodes})
        if arguments.narrow and not told.nodes:
            text.append(nothing(told, named=True))
        return Answer("\n".join(text), told)

    return Tool(
        name=NAME,
        title="GPUs of the fleet's pods",
        description=(
            "Say which pods hold which NVIDIA GPUs and MIG instances, by the kubelets' own word, "
            "with what each GPU does now: which allocations are idle, which GPUs are free, and "
            "which processes run outside of any allocation. Ask with pod and namespace for one "
            "pod's GPUs, or with nodes for a node's pods."
        ),
        arguments=GatewayArguments,
        result=FleetAllocation,
        run=run,
    )


async def whole(
    found: FanOut[NodeAllocation], arguments: GatewayArguments, workloads: Workloads
) -> FleetAllocation:
    """All of the fleet at once, for a reader without a context to fill."""
    everything = _merged(found, arguments)
    return await _joined(everything, everything.nodes, arguments, workloads)


async def _page(
    found: FanOut[NodeAllocation],
    arguments: GatewayArguments,
    start: Place | None,
    workloads: Workloads,
) -> FleetAllocation:
    everything = _merged(found, arguments)
    told = page(
        everything,
        [node for node in everything.nodes if start is None or _order(node) > start],
        first=start is None,
        limit=arguments.limit,
        detail=arguments.detail,
        shortened=lambda node: _shortened(node, arguments),
        cursor=lambda node: f"{_rank(node)} {node.node}",
    )
    return await _joined(told, everything.nodes, arguments, workloads)


def _merged(found: FanOut[NodeAllocation], arguments: GatewayArguments) -> FleetAllocation:
    nodes = []
    for answer in found.answers:
        pods = tuple(FleetPod(**dict(pod)) for pod in answer.data.pods)
        nodes.append(of_fleet(FleetNodeAllocation, answer, pods=pods, terminated=0))
    listed = [node for node in nodes if not arguments.narrow or node.pods or node.source == "none"]
    reasons = _unattributed(nodes)
    return FleetAllocation(
        **shared(found),
        totals=_sum(node.totals for node in nodes),
        nodes_unattributed=sum(node.source == "none" for node in nodes),
        unattributed=tuple(map(short, reasons[:REASONS_LISTED])),
        unattributed_omitted=max(len(reasons) - REASONS_LISTED, 0),
        gaps=(),
        gaps_omitted=0,
        nodes=tuple(sorted(listed, key=_order)),
    )


async def _joined(
    told: FleetAllocation,
    every: Iterable[FleetNodeAllocation],
    arguments: GatewayArguments,
    workloads: Workloads,
) -> FleetAllocation:
    """With what Kubernetes adds to the nodes that are told.

    Args:
        every: the nodes with all of their GPUs, which claims may be of.
    """
    gpus = {node.node: node.gpus for node in every}
    asked = [node.model_copy(update={"gpus": gpus[node.node]}) for node in told.nodes]
    join = Join(workloads, arguments.wants if arguments.narrow else None)
    nodes = await join.nodes(asked)
    counts = _changed(told.totals, told.nodes, nodes)
    if arguments.narrow:
        nodes = tuple(map(_narrowed, (node for node in nodes if node.pods)))
    return told.model_copy(
        update={
            "nodes": nodes,
            "totals": counts,
            "gaps": join.gaps[:GAPS_LISTED],
            "gaps_omitted": max(len(join.gaps) - GAPS_LISTED, 0),
        }
    )


def _sum(every: Iterator[AllocationTotals]) -> AllocationTotals:
    counts = tuple(every)
    return AllocationTotals(
        **{
            name: sum(getattr(each, name) for each in counts)
            for name in AllocationTotals.model_fields
        }
    )


def _changed(
    totals: AllocationTotals,
    before: Iterable[FleetNodeAllocation],
    after: Iterable[FleetNodeAllocation],
) -> AllocationTotals:
    """The fleet's totals, where of some of its nodes more has come out."""
    old, new = (_sum(node.totals for node in nodes) for nodes in (before, after))
    return AllocationTotals(
        **{
            name: getattr(totals, name) - getattr(old, name) + getattr(new, name)
            for name in AllocationTotals.model_fields
        }
    )


def _rank(node: FleetNodeAllocation) -> str:
    if node.totals.idle or node.strays:
        return "idle"
    return "unknown" if node.source == "none" or node.totals.unknown else "rest"


def _order(node: FleetNodeAllocation) -> Place:
    return RANKS[_rank(node)], node.node


def _unattributed(nodes: Iterable[FleetNodeAllocation]) -> list[Unattributed]:
    """Why nodes cannot say who holds their GPUs, the reason of most nodes first."""
    alike: defaultdict[str, list[str]] = defaultdict(list)
    for node in nodes:
        if node.source == "none":
            alike[node.why].append(node.node)
    return [
        Unattributed(why=why, nodes=len(names), names=spans(names))
        for why, names in sorted(alike.items(), key=lambda each: (-len(each[1]), each[0]))
    ]


def _shortened(node: FleetNodeAllocation, arguments: GatewayArguments) -> FleetNodeAllocation:
    """As a summary tells it."""
    if arguments.narrow:
        return node
    pods = node.pods[: GUESSES_LISTED if node.source == "none" else PODS_LISTED]
    omitted = node.pods_omitted + len(node.pods) - len(pods)
    node = node.model_copy(update={"pods": pods, "pods_omitted": omitted})
    return _without_rows(node) if arguments.brief else node


def _without_rows(node: FleetNodeAllocation) -> FleetNodeAllocation:
    """With the remarkable GPUs alone, and without what the fleet's answer says once."""
    unavailable = {what: why for what, why in node.unavailable.items() if why != node.why}
    why = clipped(node.why, WHY_CHARS) if node.source == "none" else node.why
    gpus = tuple(gpu for gpu in node.gpus if gpu.idle or gpu.state != "ok")
    if node.source == "none":
        gpus = ()
    return node.model_copy(update={"gpus": gpus, "unavailable": unavailable, "why": why})


def _narrowed(node: FleetNodeAllocation) -> FleetNodeAllocation:
    """With those GPUs alone that the pods hold."""
    gpus = tuple(gpu for gpu in node.gpus if any(holds(pod, gpu) for pod in node.pods))
    return node.model_copy(update={"gpus": gpus})
