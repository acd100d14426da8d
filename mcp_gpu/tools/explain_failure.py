"""`explain_failure` as a gateway serves it: why a pod, or a Job's pod, failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import Annotated, Final

from pydantic import Field

from mcp_gpu.fleet.router import Router
from mcp_gpu.registry import Answer, Arguments, Call, Right, Tool, ToolError
from mcp_gpu.workloads.failure.model import Explanation
from mcp_gpu.workloads.reads import Workloads

__all__ = ["NAME", "FailureArguments", "ObjectName", "answer", "chosen_cluster", "gateway_tool"]

NAME: Final = "explain_failure"

_NAME_PATTERN: Final = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"

ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=_NAME_PATTERN)]


class FailureArguments(Arguments):
    """Whose failure is to be explained."""

    pod: ObjectName = Field(
        description="Name of the pod; or of a Job, JobSet or PyTorchJob, whose pod that failed "
        "first is explained. It may be gone."
    )
    namespace: ObjectName = Field(default="default", description="Namespace of the pod.")
    cluster: str = Field(
        default="",
        max_length=253,
        description="Context of the kubeconfig, where the gateway has several clusters.",
    )


def gateway_tool(
    router: Router, workloads: Workloads, *, clock: Callable[[], float] = time.time
) -> Tool[FailureArguments]:
    """The tool over one or several clusters and their agents."""

    async def run(arguments: FailureArguments, call: Call) -> Answer:
        from mcp_gpu.tools.explain_failure_text import lines, within_text

        found = await answer(router, workloads, arguments, clock=clock, withheld=call.withheld)
        return Answer(within_text(lines(found)), found)

    return Tool(
        name=NAME,
        title="Why a pod failed",
        description=(
            "Say why a pod or Job failed: a category, whether it was not the program's own code "
            "(not_your_code), how sure that is, evidence with times, and the first thing to do. "
            "Looks at the pod's status, exit codes, events, node, log where allowed, and the Xids "
            "and health of the GPUs that it held while it ran; an error on a neighbour's GPU is "
            "named and not blamed. Works for pods that are gone, from events."
        ),
        arguments=FailureArguments,
        result=Explanation,
        run=run,
        rights=_rights,
    )


def _rights(arguments: FailureArguments) -> Sequence[Right]:
    where = arguments.namespace
    return (Right("get", "pods", where), Right("get", "pods/log", where, needed=False))


async def answer(
    router: Router,
    workloads: Workloads,
    arguments: FailureArguments,
    *,
    clock: Callable[[], float] = time.time,
    withheld: Collection[str] = (),
) -> Explanation:
    """The explanation.

    Raises:
        ToolError: there are several clusters and none of them is named, or an unknown one is.
    """
    # Not at start: a call has the time, and `tools/list` has not.
    from mcp_gpu.tools.node_agent import NodeAgent
    from mcp_gpu.tools.pod_gpus import look, look_at_peers
    from mcp_gpu.workloads.failure.gathering import gather
    from mcp_gpu.workloads.failure.verdict import explain

    cluster = chosen_cluster(workloads, arguments.cluster)
    prefix = f"{cluster}/" if len(workloads.clusters) > 1 else ""
    reads = workloads.reads(cluster, withheld)
    scene = await gather(reads, arguments.pod, arguments.namespace, clock())

    @cache
    def agent_of(node: str) -> NodeAgent:
        return NodeAgent(router, f"{prefix}{node}", reads)

    looked = await look(agent_of(scene.node_name), scene, reads)
    found = explain(scene, looked.sight, looked.held, gpus_source=looked.source, gaps=reads.gaps)
    if found.category != "communication" or not scene.peers:
        return found
    peers = await look_at_peers(agent_of, scene, reads)
    return explain(
        scene,
        looked.sight,
        looked.held,
        gpus_source=looked.source,
        gaps=reads.gaps,
        peers=peers,
    )


def chosen_cluster(workloads: Workloads, named: str) -> str:
    """The cluster that is meant.

    Raises:
        ToolError: there are several and none of them is named, or an unknown one is.
    """
    known = workloads.clusters
    if named and named not in known:
        raise ToolError(f'Unknown "cluster"; known: {", ".join(filter(None, known)) or "none"}.')
    if not named and len(known) > 1:
        raise ToolError(f'Name the "cluster", one of: {", ".join(known)}.')
    return named or next(iter(known), "")
