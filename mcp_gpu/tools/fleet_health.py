"""`get_gpu_health` as a gateway serves it: what is wrong anywhere in the fleet, worst first."""

from __future__ import annotations

from itertools import islice

from pydantic import Field

from mcp_gpu.fleet.router import FanOut, Router
from mcp_gpu.gpu.health.model import Finding, GpuVerdict, Severity, Verdict
from mcp_gpu.registry import Answer, Call, Tool
from mcp_gpu.tools.fleet_answer import Place, begin, of_fleet, shared
from mcp_gpu.tools.fleet_arguments import FleetArguments, asked
from mcp_gpu.tools.fleet_health_model import FleetHealth, FleetNodeHealth
from mcp_gpu.tools.fleet_health_text import lines
from mcp_gpu.tools.health_groups import gaps, groups
from mcp_gpu.tools.health_model import NAME, VERDICTS, NodeHealth, Verdicts, worst
from mcp_gpu.tools.inventory import Detail
from mcp_gpu.tools.pages import page, short

__all__ = ["GatewayArguments", "gateway_tool", "whole"]

FINDINGS_LISTED = 12
"""Findings per node in a summary; the node's verdict and the totals are over all."""

GPUS_LISTED = 16
"""GPUs per node in a summary; the node's counts are over all."""

GAPS_LISTED = 8
"""Things per node, and per GPU, told in a summary that were not checked or not to be seen."""

EVIDENCE_LISTED = 4
"""Readings behind one finding in a summary."""

TOTALS_LISTED = 24
"""Kinds of findings, and of gaps, told one by one in the totals."""

RANKS: dict[str, int] = {verdict: rank for rank, verdict in enumerate(VERDICTS)}
"""Of the verdicts that nodes are sorted by."""


class GatewayArguments(FleetArguments):
    """What a gateway may be asked about the fleet's health."""

    detail: Detail = Field(
        default="summary",
        description="full: healthy nodes too, and every GPU's verdict and health readings.",
    )
    severity: Severity = Field(
        default="warning", description="Least severe findings to tell; the rest are counted."
    )


def gateway_tool(router: Router) -> Tool[GatewayArguments]:
    """The tool as a gateway serves it: all agents asked at once, one answer."""

    async def run(arguments: GatewayArguments, call: Call) -> Answer:
        start = begin(arguments.cursor, RANKS, tool=NAME)
        found = await asked(
            router,
            NAME,
            {"detail": arguments.detail, "severity": arguments.severity},
            NodeHealth,
            arguments,
            call,
        )
        everything = whole(found, every_node=arguments.detail == "full" or bool(arguments.only))
        told = _page(everything, arguments, start)
        text = lines(
            told,
            # A later page tells of its own nodes alone.
            everything.nodes if start is None else told.nodes,
            everything.failures if start is None else (),
            severity=arguments.severity,
            full=arguments.detail == "full",
        )
        return Answer("\n".join(text), told)

    return Tool(
        name=NAME,
        title="GPU health of the fleet",
        description=(
            "Say what is wrong with the NVIDIA GPUs of all nodes. Ask this first. A verdict for "
            "the fleet, each node and GPU (failed, degraded, unknown, healthy), sick GPUs named "
            "with findings, the readings behind them and what to do, worst first; healthy ones "
            "are counted. Nodes that did not answer are unknown and named with the reason."
        ),
        arguments=GatewayArguments,
        result=FleetHealth,
        run=run,
    )


def whole(found: FanOut[NodeHealth], *, every_node: bool = False) -> FleetHealth:
    """All of the fleet at once.

    Args:
        every_node: list healthy nodes without findings, too.
    """
    nodes = sorted((of_fleet(FleetNodeHealth, each) for each in found.answers), key=_order)
    verdicts: list[Verdict] = [node.verdict for node in nodes]
    verdicts += ["unknown"] * len(found.failures)
    totals = [group.total for group in groups(nodes)]
    missing = gaps(nodes)
    return FleetHealth(
        **shared(found),
        verdict=worst(verdicts),
        nodes_by_verdict=Verdicts.of(verdicts),
        gpus_by_verdict=Verdicts.total(node.gpus_by_verdict for node in nodes),
        findings=tuple(map(short, totals[:TOTALS_LISTED])),
        findings_omitted=max(len(totals) - TOTALS_LISTED, 0),
        findings_hidden=sum(node.findings_hidden for node in nodes),
        gaps=tuple(map(short, missing[:TOTALS_LISTED])),
        gaps_omitted=max(len(missing) - TOTALS_LISTED, 0),
        nodes=tuple(
            node for node in nodes if every_node or node.verdict != "healthy" or node.findings
        ),
    )


def _order(node: FleetNodeHealth) -> Place:
    return RANKS[node.verdict], node.node


def _page(everything: FleetHealth, arguments: GatewayArguments, start: Place | None) -> FleetHealth:
    """As many nodes as an answer holds, after those of the pages before."""
    return page(
        everything,
        [node for node in everything.nodes if start is None or _order(node) > start],
        first=start is None,
        limit=arguments.limit,
        detail=arguments.detail,
        shortened=_shortened,
        cursor=lambda node: f"{node.verdict} {node.node}",
    )


def _shortened(node: FleetNodeHealth) -> FleetNodeHealth:
    findings = node.findings[:FINDINGS_LISTED]
    return node.model_copy(
        update={
            "findings": tuple(map(_short_finding, findings)),
            "findings_omitted": node.findings_omitted + len(node.findings) - len(findings),
            "gpus": tuple(map(_short_gpu, node.gpus[:GPUS_LISTED])),
            "not_checked": node.not_checked[:GAPS_LISTED],
            "unseen": dict(islice(node.unseen.items(), GAPS_LISTED)),
        }
    )


def _short_finding(finding: Finding) -> Finding:
    return finding.model_copy(update={"evidence": finding.evidence[:EVIDENCE_LISTED]})


def _short_gpu(gpu: GpuVerdict) -> GpuVerdict:
    not_checked = dict(islice(gpu.not_checked.items(), GAPS_LISTED))
    return gpu.model_copy(update={"not_checked": not_checked})
