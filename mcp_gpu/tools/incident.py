"""`get_incident_report` as a gateway serves it: what went wrong, in the order in which it did."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import Field

from mcp_gpu.fleet.router import Router
from mcp_gpu.registry import Answer, Arguments, Call, Right, Tool, ToolError
from mcp_gpu.tools.explain_failure import ObjectName, chosen_cluster
from mcp_gpu.tools.fleet_arguments import NodeName
from mcp_gpu.tools.moments import seconds
from mcp_gpu.tools.timeline_model import Duration
from mcp_gpu.workloads.incident.identity import ID_CHARS, ID_PATTERN, IncidentId, is_place
from mcp_gpu.workloads.incident.model import IncidentReport
from mcp_gpu.workloads.reads import Reads, Workloads
from transports.text import quoted

if TYPE_CHECKING:
    from mcp_gpu.tools.incident_gathering import Stretch
    from mcp_gpu.workloads.failure.scene import Scene

__all__ = ["NAME", "IncidentArguments", "answer", "gateway_tool"]

NAME: Final = "get_incident_report"

WINDOW: Final = "1h"
MOST_SECONDS: Final = 72 * 3600
"""As far back as an agent keeps readings at most."""

MARGIN_SECONDS: Final = 1800.0
"""Looked at before the window: what began before it may go on in it, and keeps its name."""

AFTER_SECONDS: Final = 1800.0
"""Looked at after a pod's end, and after what an incident is named for."""

NAME_CHARS: Final = 80


class IncidentArguments(Arguments):
    """What to report: one of `pod`, `node` and `incident_id`."""

    pod: ObjectName | None = Field(
        default=None,
        description="Name of the pod, which may be gone; or of a Job, JobSet or PyTorchJob, whose "
        "pod that failed first is taken.",
    )
    namespace: ObjectName = Field(default="default", description="Namespace of the pod.")
    node: NodeName | None = Field(default=None, description="Instead: a node.")
    incident_id: (
        Annotated[str, Field(min_length=1, max_length=ID_CHARS, pattern=ID_PATTERN)] | None
    ) = Field(default=None, description="Instead: the incident of this id, from a former report.")
    window: Duration = Field(
        default=WINDOW,
        max_length=64,
        description="How far to look back, such as 30m, 2h or 1d, at most 72h: from now; from the "
        "end of the pod that died; from what the id is of.",
    )
    cluster: str = Field(
        default="",
        max_length=253,
        description="Context of the kubeconfig, where the gateway has several clusters; an id "
        "says it itself.",
    )


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be reported."""

    cluster: str
    node: str
    """Empty: that of the pod."""
    pod: tuple[str, str] | None
    """Namespace and name."""
    identity: IncidentId | None
    window: float


def gateway_tool(
    router: Router, workloads: Workloads, *, clock: Callable[[], float] = time.time
) -> Tool[IncidentArguments]:
    """The tool over one or several clusters and their agents."""

    async def run(arguments: IncidentArguments, call: Call) -> Answer:
        from mcp_gpu.tools.incident_text import report_text

        found = await answer(router, workloads, arguments, clock=clock, withheld=call.withheld)
        return Answer(report_text(found), found)

    return Tool(
        name=NAME,
        title="Report of an incident",
        description=(
            "Report an incident on a GPU node or of a pod, ready to paste: one timeline of "
            "Kubernetes events, Xids with what they mean, health verdicts, readings that changed "
            "and containers that died, with times relative to what began it; what came first and "
            "what followed, affected pods, GPU readings before and after, why the pod failed, and "
            "what to do first. Its incident_id finds the same incident again."
        ),
        arguments=IncidentArguments,
        result=IncidentReport,
        run=run,
        rights=_rights,
    )


def _rights(arguments: IncidentArguments) -> Sequence[Right]:
    """In all namespaces, for a single pod too: a report names its neighbours on the node."""
    return (Right("get", "pods", ""), Right("get", "pods/log", "", needed=False))


async def answer(
    router: Router,
    workloads: Workloads,
    arguments: IncidentArguments,
    *,
    clock: Callable[[], float] = time.time,
    withheld: Collection[str] = (),
) -> IncidentReport:
    """The report.

    Raises:
        ToolError: not one of pod, node and incident_id is named, nobody knows the node, or the
            cluster is not named well.
    """
    # Not at start: a call has the time, and `tools/list` has not.
    from mcp_gpu.tools.incident_gathering import gather, on_node
    from mcp_gpu.tools.incident_report import Reporter
    from mcp_gpu.tools.node_agent import NodeAgent
    from mcp_gpu.workloads.failure import gathering

    wanted = _wanted(arguments, workloads)
    several = len(workloads.clusters) > 1
    reads, now = workloads.reads(wanted.cluster, withheld), clock()
    scene = None
    if wanted.pod is not None:
        scene = await gathering.gather(reads, wanted.pod[1], wanted.pod[0], now)
        scene = on_node(scene, wanted.node, reads) if wanted.node else scene
    node = wanted.node or ("" if scene is None else scene.node_name)
    prefix = f"{wanted.cluster}/" if several else ""
    agent = NodeAgent(router, f"{prefix}{node}", reads)
    told = await gather(agent, node, scene, _stretch(wanted, scene, now), reads)
    if arguments.node is not None and told.document is None and not told.agent_known:
        _refuse_unknown(node, reads)
    reporter = Reporter(agent, told, wanted.cluster if several else "", wanted.identity)
    return await reporter.report()


def _refuse_unknown(node: str, reads: Reads) -> None:
    """Raises: ToolError: there is no agent, and no such node in Kubernetes, if there is any."""
    if not any(gap.what == f"node {node}" for gap in reads.gaps):
        raise ToolError(f"No node {quoted(node, NAME_CHARS)}: neither an agent nor Kubernetes.")


def _wanted(arguments: IncidentArguments, workloads: Workloads) -> Wanted:
    """Raises: ToolError: see `answer`."""
    given: list[Any] = [arguments.pod, arguments.node, arguments.incident_id]
    if sum(each is not None for each in given) != 1:
        raise ToolError('Give one of "pod", "node" and "incident_id".')
    window = float(seconds(arguments.window) or 0)
    if window > MOST_SECONDS:
        raise ToolError('"window" is at most 72h: readings are not kept for longer.')
    if arguments.incident_id is not None:
        return _named(arguments.incident_id, workloads, window)
    named, node = arguments.cluster, arguments.node or ""
    first, slash, rest = node.partition("/")
    if slash and first in workloads.clusters:
        named, node = named or first, rest
    if node and not is_place(node):
        raise ToolError(f"No node can be called {quoted(node, NAME_CHARS)}.")
    cluster = chosen_cluster(workloads, named)
    pod = None if arguments.pod is None else (arguments.namespace, arguments.pod)
    return Wanted(cluster, node, pod, None, window)


def _named(text: str, workloads: Workloads, window: float) -> Wanted:
    try:
        identity = IncidentId.read(text)
    except ValueError as error:
        raise ToolError('"incident_id" has to be one that a former report gave.') from error
    cluster = identity.cluster_of(workloads.clusters)
    if cluster is None:
        raise ToolError("This gateway does not know the cluster that the incident is of.")
    cluster = cluster or chosen_cluster(workloads, "")
    return Wanted(cluster, identity.node, identity.pod, identity, window)


def _stretch(wanted: Wanted, scene: Scene | None, now: float) -> Stretch:
    from mcp_gpu.tools.incident_gathering import Stretch

    anchor = None if scene is None else scene.died
    if wanted.identity is not None:
        anchor = wanted.identity.at
    until = now if anchor is None else min(anchor + AFTER_SECONDS, now)
    since = min(now if anchor is None else anchor, until) - wanted.window
    return Stretch(since - MARGIN_SECONDS, since, until, now)
