"""What a report of an incident is made of: all that a node, its pods and its agent tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import anyio

from mcp_gpu.gpu.xid.report import utc
from mcp_gpu.tools.health_model import NAME as HEALTH
from mcp_gpu.tools.health_model import NodeHealth
from mcp_gpu.tools.incident_telemetry import METRICS, POINTS, SPAN_SECONDS, of_changes, of_events
from mcp_gpu.tools.moments import moment
from mcp_gpu.tools.node_agent import NodeAgent
from mcp_gpu.tools.pod_gpus import ALLOCATION, GROUPS, WARNINGS, WITH_PAST, Holders
from mcp_gpu.tools.timeline_model import NAME as TIMELINE
from mcp_gpu.tools.timeline_model import NodeTimeline
from mcp_gpu.tools.xids_model import NAME as XIDS
from mcp_gpu.tools.xids_model import NodeXids
from mcp_gpu.workloads.documents import Document, word
from mcp_gpu.workloads.failure.gathering import events_of_node
from mcp_gpu.workloads.failure.scene import Scene, happenings
from mcp_gpu.workloads.incident import objects, xids
from mcp_gpu.workloads.incident.model import Seen
from mcp_gpu.workloads.reads import Reads

__all__ = ["Stretch", "Told", "around", "gather", "on_node"]

EVENTS_LIVE_SECONDS: Final = 3600.0
"""What Kubernetes keeps events for, unless it is told otherwise."""

CLOCK_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Stretch:
    """When to look, in Unix seconds."""

    begin: float
    """A while before `since`: what began before it may go on in it."""
    since: float
    until: float
    now: float


@dataclass(slots=True)
class Told:
    """All that is told of a node, as far as it is."""

    node: str
    """Its name in its cluster; empty: there is none."""
    stretch: Stretch
    reads: Reads
    scene: Scene | None = None
    """Of the pod that was asked for."""
    document: Document | None = None
    """The node."""
    events: tuple[Document, ...] = ()
    listed: tuple[Document, ...] = ()
    """Pods of the node."""
    xids: NodeXids | None = None
    health: NodeHealth | None = None
    timeline: NodeTimeline | None = None
    holders: Holders | None = None
    agent_known: bool = False
    pods: objects.Pods = field(init=False)

    def __post_init__(self) -> None:
        self.pods = objects.Pods(self.stretch.now, self.node, (), {})

    @property
    def simulated(self) -> bool:
        answers = self.xids, self.health, self.timeline
        return any(each is not None and each.simulated for each in answers)

    def moments(self) -> tuple[Seen, ...]:
        """All that happened in the stretch."""
        begin, end = self.stretch.begin, self.stretch.until
        return tuple(each for each in self._moments() if begin <= each.at <= end)

    def _moments(self) -> Iterator[Seen]:
        if self.scene is not None:
            yield from objects.of_events(self.scene.events, self.scene.namespace)
        else:
            yield from objects.of_events(happenings(self.events), "")
        yield from objects.of_node(self.document or {}, self.node)
        yield from self.pods.ends()
        groups = () if self.xids is None else self.xids.groups
        noted: tuple[Seen, ...] = ()
        if self.timeline is not None:
            noted = tuple(of_events(self.timeline.events, groups))
            yield from noted
            yield from of_changes(self.timeline.gpus)
        known = {(each.key, each.gpu_index) for each in noted}
        for each in xids.of_groups(groups):
            if (each.key, each.gpu_index) not in known:
                yield each


def on_node(scene: Scene, node: str, reads: Reads) -> Scene | None:
    """The scene, if the pod was on that node; None for a successor elsewhere, which is a gap."""
    if scene.node_name == node:
        return scene
    where = f"the pod of that name is on {scene.node_name}" if scene.node_name else "it is gone"
    reads.miss(f"pod {scene.namespace}/{scene.name} of {node}", where)
    return None


async def gather(
    agent: NodeAgent, node: str, scene: Scene | None, stretch: Stretch, reads: Reads
) -> Told:
    """Ask all of them side by side. What is not told is a gap of `reads`.

    Args:
        node: empty: there is none to ask.
        scene: of the pod that was asked for.
    """
    told = Told(node, stretch, reads, scene)
    if node:
        begin = stretch.begin
        if scene is not None and scene.uses_gpus:
            begin = min(begin, scene.window[0])  # what explain_failure asks for, asked once
        questions: Mapping[str, Callable[[], Any]] = {
            "document": lambda: reads.get("/api/v1", "nodes", node),
            "events": lambda: events_of_node(reads, node),
            "listed": lambda: reads.list("/api/v1", "pods", fieldSelector=f"spec.nodeName={node}"),
            "xids": lambda: agent.ask(
                XIDS, {"since": utc(begin), "limit": GROUPS}, NodeXids, f"Xids of {node}"
            ),
            "health": lambda: agent.ask(HEALTH, WARNINGS, NodeHealth, f"GPU health of {node}"),
            "timeline": lambda: agent.ask(
                TIMELINE,
                {"since": utc(stretch.begin), "until": utc(stretch.until), "points": 0},
                NodeTimeline,
                f"timeline of {node}",
            ),
            "holders": lambda: agent.ask(
                ALLOCATION, WITH_PAST, Holders, f"holders of GPUs of {node}"
            ),
        }

        async def look(what: str, ask: Callable[[], Any]) -> None:
            setattr(told, what, await ask())

        async with anyio.create_task_group() as tasks:
            for what, ask in questions.items():
                tasks.start_soon(look, what, ask)
        told.agent_known = agent.known
        _note_gaps(told)
    told.pods = _pods(told)
    return told


def _note_gaps(told: Told) -> None:
    node, stretch, reads = told.node, told.stretch, told.reads
    for missed in () if told.xids is None else told.xids.missed:
        reads.miss(f"Xids of {node}", missed)
    if stretch.now - stretch.since > EVENTS_LIVE_SECONDS:
        reads.miss("older events", "Kubernetes keeps events for an hour, unless told otherwise")
    if told.holders is not None and told.holders.source == "none":
        reads.miss(f"holders of GPUs of {node}", told.holders.why)
    timeline = told.timeline
    if timeline is None:
        return
    if xids.unix(timeline.since) > stretch.since + CLOCK_SECONDS:
        why = f"its agent keeps readings for {timeline.kept_hours:g} hours"
        reads.miss(f"timeline of {node} before {timeline.since}", why)
    if timeline.events_omitted:
        why = f"{timeline.events_omitted} older ones are left out: ask for a shorter window"
        reads.miss(f"what the agent of {node} noted", why)


def _pods(told: Told) -> objects.Pods:
    documents = list(told.listed)
    scene = told.scene
    if scene is not None and scene.pod:
        uid = word(scene.pod, "metadata", "uid")
        if not any(word(each, "metadata", "uid") == uid for each in documents):
            documents.append(scene.pod)
    names = {
        word(each, "metadata", "uid"): (
            word(each, "metadata", "namespace"),
            word(each, "metadata", "name"),
        )
        for each in documents
    }
    held, past = dict(_held(told, names)), tuple(_past(told, names))
    return objects.Pods(told.stretch.now, told.node, documents, held, past)


def _held(
    told: Told, names: Mapping[str, tuple[str, str]]
) -> Iterator[tuple[tuple[str, str], tuple[int | None, ...]]]:
    """Who holds which GPUs, by the agent.

    Args:
        names: of pods by uid: a checkpoint of the kubelet's knows no names.
    """
    indices: dict[str | None, int] = {}
    if told.health is not None:
        indices = {each.uuid: each.gpu_index for each in told.health.gpus if each.uuid}
    for pod in () if told.holders is None else told.holders.pods:
        name = (pod.namespace, pod.pod) if pod.pod else names.get(pod.pod_uid or "")
        if name is not None:
            yield (
                name,
                tuple(
                    indices.get(each.gpu_uuid) if each.gpu_index is None else each.gpu_index
                    for container in pod.containers
                    for each in (*container.devices, *container.claims)
                ),
            )


def _past(told: Told, names: Mapping[str, tuple[str, str]]) -> Iterator[objects.Held]:
    """Who held them before, as `_held`."""
    for each in () if told.holders is None else told.holders.past:
        name = (each.namespace, each.pod) if each.pod else names.get(each.pod_uid or "")
        since, until = moment(each.since), moment(each.until)
        if name is not None and since is not None and until is not None:
            yield objects.Held(name, each.gpu_index, since, until)


async def around(
    agent: NodeAgent, node: str, zero: float, stretch: Stretch
) -> tuple[NodeTimeline | None, float]:
    """The readings of the node's GPUs before and after T+0, and when they end."""
    until = min(zero + SPAN_SECONDS, stretch.now)
    if not node or until <= zero:
        return None, zero
    asked = {
        "since": utc(zero - SPAN_SECONDS),
        "until": utc(until),
        "metrics": list(METRICS),
        "points": POINTS,
    }
    what = f"readings of {node} before and after T+0"
    return await agent.ask(TIMELINE, asked, NodeTimeline, what), until
