"""From all that is told of a node and a pod to the report of one incident: `Reporter`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Final

from mcp_gpu.gpu.actions import weight
from mcp_gpu.gpu.health.model import SEVERITIES, Severity
from mcp_gpu.gpu.xid.report import utc
from mcp_gpu.tools.incident_gathering import Told, around, on_node
from mcp_gpu.tools.incident_telemetry import snapshots
from mcp_gpu.tools.node_agent import NodeAgent
from mcp_gpu.tools.pod_gpus import look
from mcp_gpu.tools.spans import numbers
from mcp_gpu.workloads.failure.gathering import gather as gather_pod
from mcp_gpu.workloads.failure.model import Explanation
from mcp_gpu.workloads.failure.scene import Scene
from mcp_gpu.workloads.failure.verdict import explain
from mcp_gpu.workloads.incident import xids
from mcp_gpu.workloads.incident.identity import IncidentId
from mcp_gpu.workloads.incident.incidents import Incident, incidents, moments, ordered, sentence
from mcp_gpu.workloads.incident.model import (
    IncidentReport,
    IncidentSummary,
    Seen,
    Snapshot,
    StateNow,
    told,
)
from mcp_gpu.workloads.incident.objects import of_events

__all__ = ["Reporter"]

WELL: Final = ("still_running", "succeeded")
FOLLOWED: Final = 12
LISTED: Final = 20
PODS: Final = 40
GAPS: Final = 24
NOW: Final = 20
SNAPSHOTS: Final = 4


class Reporter:
    """One report.

    Args:
        all_told: what there is to go by.
        cluster: its name, where there are several; else empty.
        identity: of the incident that is asked for by name.
    """

    def __init__(
        self, agent: NodeAgent, all_told: Told, cluster: str, identity: IncidentId | None
    ) -> None:
        self._agent, self._told, self._cluster = agent, all_told, cluster
        self._identity = identity
        self._stretch, self._reads = all_told.stretch, all_told.reads

    async def report(self) -> IncidentReport:
        """Choose the incident, and tell of it."""
        told_of = self._told
        explanation = None if told_of.scene is None else await self._explained(told_of.scene)
        every = [*told_of.moments(), *self._of_explanation(explanation)]
        found = incidents(every)
        chosen = self._chosen(found, explanation)
        if chosen is None and self._identity is not None:
            why = "nothing that is still known began then: events and readings are kept for a while"
            self._reads.miss(f"incident {self._identity}", why)
        if explanation is None and chosen is not None:
            scene = await self._first_to_die(chosen)
            if scene is not None:
                explanation = await self._explained(scene)
                every += of_events(scene.events, scene.namespace)
        zero = chosen.anchor.at if chosen is not None else None
        if zero is None and self._identity is not None:
            zero = self._identity.at
        before_after = await self._snapshots(chosen, explanation, zero)
        return self._report(found, chosen, every, explanation, zero, before_after)

    async def _explained(self, scene: Scene) -> Explanation:
        looked = await look(self._agent, scene, self._reads)
        found = explain(
            scene, looked.sight, looked.held, gpus_source=looked.source, gaps=self._reads.gaps
        )
        return found.model_copy(update={"gaps": ()})  # which the report tells

    async def _first_to_die(self, chosen: Incident) -> Scene | None:
        pod = next((each.pod for each in chosen.seeds if each.pod is not None), None)
        if pod is None:
            return None
        scene = await gather_pod(self._reads, pod[1], pod[0], self._stretch.now)
        return on_node(scene, self._told.node, self._reads)

    def _of_explanation(self, found: Explanation | None) -> Iterator[Seen]:
        """The failure itself, where neither a container nor Kubernetes tells when it was."""
        if found is None or found.category in (*WELL, "unknown"):
            return
        pod = found.namespace, found.pod
        if any(each.pod == pod and each.went_wrong for each in self._told.moments()):
            return
        times = [fact.at for fact in found.evidence if fact.at is not None]
        at = found.died or min(times, default=None)
        if at is not None:
            text = told(f"{found.category}: {found.says}")
            yield Seen(xids.unix(at), "warning", "verdict", f"failure {found.category}", text,
                       pod=pod)  # fmt: skip

    def _chosen(
        self, found: Sequence[Incident], explanation: Explanation | None
    ) -> Incident | None:
        if self._identity is not None:
            return next(
                (
                    each
                    for each in found
                    if any(self._identity.names(seed, self._cluster) for seed in each.seeds)
                ),
                None,
            )
        here = self._here(found)
        if explanation is None:
            return here[0] if here else None
        pod = explanation.namespace, explanation.pod
        own = [each for each in found if any(seed.pod == pod for seed in each.seeds)]
        if own:
            return own[-1]
        return next((each for each in here if each.gpus & _held(explanation)), None)

    def _here(self, found: Sequence[Incident]) -> tuple[Incident, ...]:
        """Those of the window."""
        return ordered(each for each in found if each.ended >= self._stretch.since)

    async def _snapshots(
        self, chosen: Incident | None, explanation: Explanation | None, zero: float | None
    ) -> tuple[Snapshot, ...]:
        concerned = self._concerned(chosen, explanation)
        if zero is None or self._told.timeline is None:
            return ()
        if not concerned:
            return ()
        found, until = await around(self._agent, self._told.node, zero, self._stretch)
        if found is None:
            return ()
        told_of = tuple(snapshots(found.gpus, concerned, zero, until))[:SNAPSHOTS]
        known = {each.gpu_index for each in told_of}
        for index in sorted(concerned):
            levels = [lv for each in told_of if each.gpu_index == index for lv in each.levels]
            if index in known and any(level.before is not None for level in levels):
                continue
            why = (
                "none is kept: the GPU gave none, or the agent started later and has no "
                "--recorder-directory"
            )
            self._reads.miss(f"readings of GPU {index} of {self._told.node} before T+0", why)
        return told_of

    def _concerned(
        self, chosen: Incident | None, explanation: Explanation | None
    ) -> frozenset[int]:
        gpus = frozenset() if chosen is None else chosen.gpus
        return gpus | _held(explanation)

    def _id(self, incident: Incident) -> str:
        found = IncidentId.of(incident.anchor, node=self._told.node, cluster=self._cluster)
        return found.told

    def _report(
        self,
        found: Sequence[Incident],
        chosen: Incident | None,
        every: Sequence[Seen],
        explanation: Explanation | None,
        zero: float | None,
        before_after: tuple[Snapshot, ...],
    ) -> IncidentReport:
        stretch, told_of = self._stretch, self._told
        begin = chosen.seeds[0].at if chosen else stretch.since if zero is None else zero
        end = chosen.ended if chosen else stretch.until if zero is None else zero
        concerned = self._concerned(chosen, explanation)
        # A neighbour's temperature is no part of it; what went wrong on a neighbour is.
        near = [
            each
            for each in every
            if each.source != "telemetry"
            or each.went_wrong
            or not concerned
            or each.gpu_index in concerned
        ]
        timeline, omitted = moments(near, begin, end if zero is None else zero, end)
        seeds = chosen.seeds if chosen else ()
        listed = self._here(found)
        apart = chosen is None and told_of.scene is not None
        pods = () if apart else told_of.pods.affected(chosen.gpus if chosen else (), begin, end)
        own = chosen.gpus if chosen else _held(explanation) if apart else None
        identity = self._id(chosen) if chosen else str(self._identity or "")
        return IncidentReport(
            incident_id=identity,
            title=self._title(chosen, explanation, listed),
            severity=chosen.severity if chosen else self._severity_now(own),
            node=told(told_of.node),
            pod="" if not (explanation and explanation.pod) else
            f"{explanation.namespace}/{explanation.pod}",
            simulated=told_of.simulated or bool(explanation and explanation.simulated),
            began=None if zero is None else utc(zero),
            ended=None if chosen is None else utc(chosen.ended),
            since=utc(stretch.since),
            until=utc(stretch.until),
            came_first=sentence(seeds[0], chosen.anchor.at) if chosen else "",
            followed=tuple(sentence(each, chosen.anchor.at) for each in seeds[1 : FOLLOWED + 1])
            if chosen else (),
            followed_omitted=max(len(seeds) - 1 - FOLLOWED, 0),
            first_step=self._first_step(own, explanation),
            timeline=timeline,
            timeline_omitted=omitted,
            xids=() if told_of.xids is None else xids.meanings(told_of.xids.groups, begin, end),
            chains=() if told_of.xids is None else xids.chains(told_of.xids.devices, begin, end),
            affected_pods=pods[:PODS],
            affected_pods_omitted=max(len(pods) - PODS, 0),
            snapshots=before_after,
            now=tuple(self._now())[:NOW],
            explanation=explanation,
            incidents=tuple(map(self._summary, listed[:LISTED])),
            incidents_omitted=max(len(listed) - LISTED, 0),
            gaps=self._reads.gaps[:GAPS],
        )  # fmt: skip

    def _summary(self, incident: Incident) -> IncidentSummary:
        return IncidentSummary(
            incident_id=self._id(incident),
            at=incident.anchor.second,
            severity=incident.severity,
            title=self._named(incident.anchor),
            moments=len(incident.seeds),
        )

    def _title(
        self,
        chosen: Incident | None,
        explanation: Explanation | None,
        listed: Sequence[Incident],
    ) -> str:
        if chosen is not None:
            return self._named(chosen.anchor)
        if self._identity is not None:
            return "What began this incident is not known any more."
        when = f"from {utc(self._stretch.since)} to {utc(self._stretch.until)}"
        if explanation is None or not explanation.pod:
            where = told(self._told.node or "the pod")
            return f"Nothing of {where} is known to have gone wrong {when}."
        pod = told(f"{explanation.namespace}/{explanation.pod}")
        return f"No incident of pod {pod} is known {when}.{self._elsewhere(explanation, listed)}"

    def _elsewhere(self, explanation: Explanation, listed: Sequence[Incident]) -> str:
        """What its node has seen meanwhile, which is not known to be the pod's."""
        if not listed:
            return ""
        held = sorted(_held(explanation))
        owns = f"It held GPU {numbers(held)}" if held else "Which GPUs it held is not known"
        more = f", and {len(listed) - 1} more" if len(listed) > 1 else ""
        named, identity = self._named(listed[0].anchor), self._id(listed[0])
        return f" {owns}; on its node something else went wrong: {named}: {identity}{more}."

    def _named(self, seen: Seen) -> str:
        _, _, said = sentence(seen, seen.at).partition(", ")
        return f"{said} ({told(self._told.node)})" if self._told.node else said

    def _now(self) -> Iterator[StateNow]:
        for each in () if self._told.health is None else self._told.health.findings:
            yield StateNow(
                code=told(each.code),
                severity=each.severity,
                gpu_index=each.gpu_index,
                title=told(each.title),
                action=told(f"{each.action}: {each.advice}", 500),
            )

    def _severity_now(self, own: Collection[int] | None) -> Severity:
        found = (each.severity for each in self._now() if _concerns(own, each.gpu_index))
        return min(found, key=SEVERITIES.index, default="info")

    def _first_step(self, own: Collection[int] | None, explanation: Explanation | None) -> str:
        """Of a pod that was asked for what explains it; of a node what its GPUs need."""
        step = "" if explanation is None else explanation.first_step
        failed = explanation is not None and explanation.category not in WELL
        if self._told.scene is not None and failed:
            return step
        return next(self._steps(own), step or "Nothing that could be read asks for anything.")

    def _steps(self, own: Collection[int] | None) -> Iterator[str]:
        told_of = self._told
        devices = () if own is None or told_of.xids is None else told_of.xids.devices
        sick = [each for each in devices if weight(each.action) and _concerns(own, each.gpu_index)]
        for each in sorted(sick, key=lambda each: -weight(each.action)):
            yield told(f"{each.device}: {each.action}: {each.advice}", 500)
        for now in self._now():
            if now.severity == "critical" and _concerns(own, now.gpu_index):
                where = "" if now.gpu_index is None else f"GPU {now.gpu_index}: "
                yield f"{where}{now.action}"


def _held(explanation: Explanation | None) -> frozenset[int]:
    """GPUs of the pod that is explained, as far as they are known."""
    gpus = () if explanation is None else explanation.gpus
    return frozenset(each.gpu_index for each in gpus if each.gpu_index is not None)


def _concerns(own: Collection[int] | None, gpu: int | None) -> bool:
    """Whether what is said of a GPU, or of the node as a whole, is of those that are told of.

    Args:
        own: None: all of the node.
    """
    return own is None or gpu is None or gpu in own
