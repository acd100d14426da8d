"""What `get_gpu_health` of a gateway answers, on the wire."""

from __future__ import annotations

from pydantic import Field

from mcp_gpu.gpu.health.model import Severity, Verdict
from mcp_gpu.gpu.wire import Wire
from mcp_gpu.tools.fleet_answer import FleetAnswer
from mcp_gpu.tools.health_model import NodeHealth, Verdicts

__all__ = ["FindingTotal", "FleetHealth", "FleetNodeHealth", "Gap"]


class FleetNodeHealth(NodeHealth):
    """One node's health and how it was had."""

    via: str = Field(description="Path the answer took: http, command, ...")


class FindingTotal(Wire):
    """One kind of finding over all nodes that answered."""

    code: str
    severity: Severity
    action: str
    nodes: int
    gpus: int = Field(description="0: it is of the nodes as a whole.")


class Gap(Wire):
    """What was not checked or not to be seen, over all nodes that answered."""

    what: tuple[str, ...] = Field(description="Checks, or what agents look at.")
    why: str
    nodes: int


class FleetHealth(FleetAnswer):
    """What is wrong with the GPUs of the fleet. Counts are over all nodes, whatever is listed."""

    verdict: Verdict = Field(
        description="The worst of all nodes. A node that did not answer is unknown."
    )
    nodes_by_verdict: Verdicts
    gpus_by_verdict: Verdicts = Field(description="GPUs of nodes that answered.")
    findings: tuple[FindingTotal, ...] = Field(description="Worst and most frequent first.")
    findings_omitted: int = Field(description="Kinds of findings that are not among them.")
    findings_hidden: int = Field(description="Findings less severe than asked for.")
    gaps: tuple[Gap, ...] = Field(description="Most frequent first.")
    gaps_omitted: int
    nodes: tuple[FleetNodeHealth, ...] = Field(
        description="Worst first, then by name. Healthy nodes without findings are counted, not "
        "listed, but for those in `nodes` of the call, or with detail full."
    )
