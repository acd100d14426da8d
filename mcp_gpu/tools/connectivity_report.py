"""What is told of how a gateway reaches its agents: who is well as a count, others by name."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from statistics import median

from pydantic import BaseModel, ConfigDict, Field

from mcp_gpu.fleet.connectivity.checkup import Findings
from mcp_gpu.fleet.connectivity.model import NodeSurvey, Outcome, PathResult, Place, Survey
from mcp_gpu.fleet.connectivity.survey import works
from mcp_gpu.fleet.diagnosis.case import Case
from mcp_gpu.fleet.diagnosis.evidence import Evidence
from mcp_gpu.fleet.diagnosis.model import Diagnosis
from mcp_gpu.fleet.model import Coverage

__all__ = ["AbsentNode", "FleetConnectivity", "NodeConnectivity", "PathTotals", "page", "whole"]

ROW_BYTES = 400
"""Room in a page for each node asked for. Where rows are longer it holds fewer, and the cursor
goes on from there: by default a page stays under 40,000 characters."""

ABSENT_LISTED = 20
"""Nodes without an agent told one by one."""

MESSAGE_CHARS = 160
"""Length of one message; a page holds hundreds."""


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True)


class PathTried(_Wire):
    """One path to one node."""

    via: str = Field(description="http, portforward, exec, command, ...")
    outcome: Outcome = Field(
        description="ok; large_lost: small answers arrive, large ones do not; wrong_identity: "
        "somebody else answers; not_tried; otherwise how it failed."
    )
    ms: float | None = Field(description="Until the answer or the failure; null: not tried.")
    message: str | None = Field(description="What was met; null for ok.")


class NodeConnectivity(_Wire):
    """A node whose preferred path does not work."""

    node: str
    in_use: str | None = Field(description="Path that calls take now; null: none does.")
    why: str = Field(description="Why that one.")
    explanation: str | None = Field(description="What the cluster says of the agent.")
    paths: tuple[PathTried, ...] = Field(description="In order of preference.")


class PathTotals(_Wire):
    """One path over all nodes it applies to."""

    via: str
    outcomes: dict[str, int] = Field(description="Nodes by outcome, most frequent first.")
    median_ms: float | None = Field(description="Of those that answer.")


class AbsentNode(_Wire):
    """A node that should have an agent and has none that could be asked."""

    node: str
    why: str


class FleetConnectivity(Diagnosis):
    """How the gateway reaches its agents, what is wrong with that, and what to do."""

    gateway_node: str | None = Field(description="Where the gateway runs; null: not known.")
    gateway_pod: str | None
    coverage: Coverage
    nodes_healthy: int = Field(description="Nodes whose preferred path works.")
    nodes_cut_short: int = Field(
        description="Nodes that no path had reached when time was up, with some still to try."
    )
    healthy_by_path: dict[str, int] = Field(description="Those by the path that calls take.")
    paths: tuple[PathTotals, ...] = Field(description="In order of preference.")
    nodes: tuple[NodeConnectivity, ...] = Field(description="All others, by name.")
    next_cursor: str | None = Field(description="Pass as `cursor` for more nodes; null: no more.")
    nodes_omitted: int = Field(description="Nodes that are on later pages.")
    absent: tuple[AbsentNode, ...]
    absent_omitted: int


def whole(found: Findings) -> FleetConnectivity:
    """All nodes at once, for a reader without a context to fill."""
    table, survey = found.table, found.survey
    # By the diagnosis's own measure: HTTP does not count where it cannot be expected.
    agents = Case(survey, Evidence()).agents
    well = {each.name for each in agents if each.preferred}
    healthy = [node for node in survey.nodes if node.node in well]
    return FleetConnectivity(
        **dict(found.diagnosis),
        gateway_node=survey.place.node or None,
        gateway_pod=_pod(survey.place),
        coverage=Coverage(
            nodes_known=found.nodes_known,
            nodes_asked=len(survey.nodes) + len(survey.absent),
            nodes_answered=sum(works(node) for node in survey.nodes),
            discovery=table.source,
            discovery_age_seconds=round(max(time.time() - table.as_of, 0.0), 1),
            discovery_problem=table.problem,
        ),
        nodes_healthy=len(healthy),
        nodes_cut_short=sum(each.cut_short for each in agents),
        healthy_by_path=dict(Counter(_way(node) for node in healthy).most_common()),
        paths=_totals(survey),
        nodes=tuple(_row(node) for node in survey.nodes if node.node not in well),
        next_cursor=None,
        nodes_omitted=0,
        absent=tuple(AbsentNode(node=node, why=_clipped(why)) for node, why in survey.absent),
        absent_omitted=0,
    )


def page(whole: FleetConnectivity, limit: int, cursor: str | None) -> FleetConnectivity:
    """As much of it as an answer holds. A cursor is the last node told, so that any replica can
    go on from it."""
    rest = [each for each in whole.nodes if cursor is None or each.node > cursor]
    told: list[NodeConnectivity] = []
    size_bytes = 0
    for node in rest[:limit]:
        size_bytes += len(json.dumps(node.model_dump(mode="json")))
        if told and size_bytes > ROW_BYTES * limit:
            break
        told.append(node)
    omitted = len(rest) - len(told)
    return whole.model_copy(
        update={
            "nodes": tuple(told),
            "next_cursor": told[-1].node if omitted and told else None,
            "nodes_omitted": omitted,
            "absent": whole.absent[:ABSENT_LISTED],
            "absent_omitted": max(len(whole.absent) - ABSENT_LISTED, 0),
        }
    )


def _way(node: NodeSurvey) -> str:
    """The path that calls take, or would."""
    return node.in_use or next(path.via for path in node.paths if path.outcome == "ok")


def _row(node: NodeSurvey) -> NodeConnectivity:
    return NodeConnectivity(
        node=node.node,
        in_use=node.in_use or None,
        why=_clipped(node.why),
        explanation=_clipped(node.explanation) or None,
        paths=tuple(
            PathTried(
                via=path.via,
                outcome=path.outcome,
                ms=_ms(path),
                message=_clipped(path.message) or None,
            )
            for path in node.paths
        ),
    )


def _totals(survey: Survey) -> tuple[PathTotals, ...]:
    outcomes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    answered: defaultdict[str, list[float]] = defaultdict(list)
    for node in survey.nodes:
        for path in node.paths:
            outcomes[path.via][path.outcome] += 1
            if path.outcome == "ok" and path.seconds is not None:
                answered[path.via].append(path.seconds)
    return tuple(
        PathTotals(
            via=via,
            outcomes=dict(counted.most_common()),
            median_ms=round(median(answered[via]) * 1000, 1) if answered[via] else None,
        )
        for via, counted in outcomes.items()
    )


def _pod(place: Place) -> str | None:
    return "/".join(part for part in (place.namespace, place.pod) if part) if place.pod else None


def _ms(path: PathResult) -> float | None:
    return None if path.seconds is None else round(path.seconds * 1000, 1)


def _clipped(text: str) -> str:
    return text if len(text) <= MESSAGE_CHARS else text[: MESSAGE_CHARS - 1] + "\u2026"
