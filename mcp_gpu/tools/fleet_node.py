"""`describe_gpu_node` as a gateway serves it: one node by its agent and by Kubernetes, and whether
all who count its GPUs agree."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
from pydantic import Field

from mcp_gpu.fleet.discovery import DiscoveryError
from mcp_gpu.fleet.model import NodeFailure
from mcp_gpu.fleet.router import NodeAnswer, Router
from mcp_gpu.fleet.selection import UnknownNodes
from mcp_gpu.registry import Answer, Arguments, Call, Tool, ToolError
from mcp_gpu.tools.fleet_arguments import NodeName, asking
from mcp_gpu.tools.fleet_node_model import Allocated, FleetNodeDescription, Reach
from mcp_gpu.tools.fleet_node_text import lines
from mcp_gpu.tools.node_allocated import by_agent, by_requests
from mcp_gpu.tools.node_counts import driver
from mcp_gpu.tools.node_model import NAME, NodeDescription
from mcp_gpu.tools.xids import within
from mcp_gpu.workloads.counts.comparison import compare, rows
from mcp_gpu.workloads.counts.model import Counted
from mcp_gpu.workloads.documents import Document, is_path_part
from mcp_gpu.workloads.nodes import NodeEvent, node_events, read_cluster_node
from mcp_gpu.workloads.reads import Reads, Workloads
from mcp_gpu.workloads.slices import node_slices, pools, sliced

__all__ = ["GatewayArguments", "gateway_tool"]

TEXT_CHARS = 8_000
"""The text is never longer."""

LINE_CHARS = 700


class GatewayArguments(Arguments):
    """Which node."""

    node: NodeName = Field(
        min_length=1,
        description="Its name as get_gpu_inventory has it: with several clusters context/node.",
    )


@dataclass(slots=True)
class _Found:
    """What each source has brought."""

    answer: NodeAnswer[NodeDescription] | None = None
    failure: NodeFailure | None = None
    unknown: UnknownNodes | DiscoveryError | None = None
    held: Allocated | None = None
    node: Document | None = None
    events: tuple[NodeEvent, ...] | None = None
    slices: tuple[Document, ...] | None = None
    unavailable: dict[str, str] = field(default_factory=dict)


def gateway_tool(
    router: Router, workloads: Workloads, *, clock: Callable[[], float] = time.time
) -> Tool[GatewayArguments]:
    """The tool over a fleet.

    Args:
        clock: Unix time, by which events are of the last hour.
    """

    async def run(arguments: GatewayArguments, call: Call) -> Answer:
        cluster, _, name = arguments.node.rpartition("/")
        reads = _reads(workloads, cluster, name)
        found = _Found()
        async with anyio.create_task_group() as group:
            group.start_soon(_ask, router, arguments.node, found)
            group.start_soon(_hold, router, arguments.node, reads, found)
            group.start_soon(_read, reads, name, found, clock)
        if found.node is None and found.answer is None:
            _refuse(found, reads, name)
        if found.held is None and (found.node is not None or reads.missed("nodes")):
            found.held = await by_requests(reads, name)
        told = _described(arguments.node, found, reads)
        return Answer("\n".join(within(lines(told), TEXT_CHARS, LINE_CHARS)), told)

    return Tool(
        name=NAME,
        title="One GPU node on one page",
        description=(
            "Describe one node: whether NVML, the PCI bus, Kubernetes' capacity and allocatable, "
            "ResourceSlices and labels count the same GPUs, and each disagreement by cause with "
            "evidence and fix; then health, Xids of the last day, conditions, taints, labels, "
            "versions, what is allocated, events of the last hour, how the gateway reaches it, "
            "and what its agent may see. Works with either half missing, and names what is."
        ),
        arguments=GatewayArguments,
        result=FleetNodeDescription,
        run=run,
    )


def _reads(workloads: Workloads, cluster: str, name: str) -> Reads:
    """Of the node's own cluster; of none where there is no such cluster, or no such name."""
    if (cluster and cluster not in workloads.clusters) or not is_path_part(name):
        return Reads(None)
    return workloads.reads(cluster)


async def _ask(router: Router, node: str, found: _Found) -> None:
    try:
        fan_out = await router.fan_out(NAME, {}, NodeDescription, nodes=[node])
    except (UnknownNodes, DiscoveryError) as error:
        found.unknown = error
        return
    found.answer = next(iter(fan_out.answers), None)
    found.failure = next(iter(fan_out.failures), None)


async def _hold(router: Router, node: str, reads: Reads, found: _Found) -> None:
    try:
        found.held = await by_agent(router, node, reads)
    except (UnknownNodes, DiscoveryError):
        return  # which is told by who asks the agent


async def _read(reads: Reads, name: str, found: _Found, clock: Callable[[], float]) -> None:
    found.node = await reads.get("/api/v1", "nodes", name)
    if found.node is None and reads.missed("nodes") is None:
        return  # Kubernetes says that there is none

    async def events() -> None:
        found.events = await node_events(reads, name, clock())

    async def slices() -> None:
        found.slices = await node_slices(reads, name)

    async with anyio.create_task_group() as group:
        group.start_soon(events)
        group.start_soon(slices)


def _refuse(found: _Found, reads: Reads, name: str) -> None:
    """Nobody knows the node: say so, and whom one could have asked besides.

    Raises:
        ToolError: in that case.
    """
    gaps = "; ".join(f"{gap.what}: {gap.why}" for gap in reads.gaps)
    besides = f" Kubernetes could not be asked: {gaps}." if gaps else ""
    if found.unknown is not None:
        try:
            with asking():
                raise found.unknown
        except ToolError as error:
            raise ToolError(f"{error}{besides}") from found.unknown
    failure = found.failure
    if failure is not None and failure.reason == "unreachable" and not failure.attempts:
        # Agents that are known by address alone, none of which is on the node.
        raise ToolError(f"Node {name} is not known: {failure.message}.{besides}")


def _described(node: str, found: _Found, reads: Reads) -> FleetNodeDescription:
    agent = found.answer.data if found.answer is not None else None
    cluster = read_cluster_node(found.node) if found.node is not None else None
    no_agent = "" if agent is not None else _silence(found)
    no_node = "" if cluster is not None else _missing(reads, "nodes", "Kubernetes has no such node")
    no_slices = "" if found.slices is not None else _missing(reads, "resourceslices", no_node)
    counted = Counted(
        driver=driver(agent) if agent is not None else None,
        bus=agent.surroundings.bus if agent is not None else None,
        agent_why=no_agent,
        advertised=cluster.advertised() if cluster is not None else None,
        node_why=no_node,
        sliced=sliced(found.slices) if found.slices is not None else None,
        slices_why=no_slices,
    )
    reasons = {
        "agent": no_agent,
        "kubernetes": no_node,
        "slices": no_slices,
        "events": "" if found.events is not None else _missing(reads, "events", no_node),
        "allocated": "" if found.held is not None else _missing(reads, "pods", no_node),
    }
    return FleetNodeDescription(
        node=node,
        simulated=agent is not None and agent.simulated,
        verdict=agent.health.verdict if agent is not None else "unknown",
        counts=rows(counted),
        disagreements=compare(counted),
        reach=_reach(found),
        agent=agent,
        kubernetes=cluster,
        allocated=found.held,
        slices=pools(found.slices) if found.slices is not None else None,
        events=found.events,
        gaps=reads.gaps,
        unavailable={name: why for name, why in reasons.items() if why},
    )


def _silence(found: _Found) -> str:
    """Why the agent says nothing."""
    if found.failure is not None:
        return f"the agent has not answered ({found.failure.reason})"
    return "no agent is known on this node"


def _missing(reads: Reads, kind: str, otherwise: str) -> str:
    """Why something was not read."""
    gap = reads.missed(kind)
    if gap is None:
        return otherwise or "not read"
    return f"{gap.why}: {gap.grant}" if gap.grant else gap.why


def _reach(found: _Found) -> Reach:
    answer = found.answer
    return Reach(
        via=answer.via if answer is not None else None,
        milliseconds=round(answer.elapsed_seconds * 1000, 1) if answer is not None else None,
        passed_over=dict(answer.passed_over) if answer is not None else {},
        failure=found.failure,
    )
