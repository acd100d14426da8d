"""From a survey and the evidence to a verdict: each cause is judged, and judgements are weighed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from mcp_gpu.fleet.connectivity.model import Survey
from mcp_gpu.fleet.diagnosis.case import HTTP, Agent, Case, names
from mcp_gpu.fleet.diagnosis.causes import access, agents, aws, mesh, overlay, packets, rules, tls
from mcp_gpu.fleet.diagnosis.evidence import Evidence
from mcp_gpu.fleet.diagnosis.finding import Finding, Judgement, RuledOut, few
from mcp_gpu.fleet.diagnosis.model import Diagnosis, Verdict
from mcp_gpu.fleet.diagnosis.pattern import patterns

__all__ = ["CAUSES", "diagnose"]

CAUSES: tuple[Callable[[Case], Judgement], ...] = (
    agents.absent,
    agents.down,
    agents.node_down,
    rules.network_policy,
    overlay.source_check,
    overlay.overlay_blocked,
    aws.pod_security_group,
    aws.security_group,
    aws.external_snat,
    packets.mtu,
    packets.address_family,
    mesh.mesh_mtls,
    agents.stale_address,
    agents.on_loopback,
    agents.not_listening,
    agents.name_resolution,
    access.token_rejected,
    access.host_not_allowed,
    tls.untrusted,
    tls.wrong_name,
    tls.expired,
    tls.scheme,
    tls.failed,
    access.kubelet_unreachable,
    access.api_unreachable,
    access.credentials,
    access.rbac,
    access.admission,
    access.no_relay,
    packets.node_network,
    packets.reverse_path,
    overlay.checksum_offload,
    rules.cni_policy,
    packets.kernel_regression,
)
"""In the order in which equally likely ones are named."""

RANK = {"high": 0, "medium": 1, "low": 2}


def diagnose(survey: Survey, evidence: Evidence) -> Diagnosis:
    """Say what is wrong, why, and what to do. Pure: asks nobody."""
    case = Case(survey, evidence)
    judgements = [judge(case) for judge in CAUSES]
    findings = _weigh([each for each in judgements if isinstance(each, Finding)])
    unexplained = _unexplained(case, findings)
    if unexplained:
        findings.append(_unknown(case, unexplained))
    verdict = _verdict(case)
    return Diagnosis(
        verdict=verdict,
        headline=_headline(case, verdict, findings),
        causes=tuple(finding.cause() for finding in findings),
        patterns=patterns(case),
        ruled_out=()
        if verdict == "healthy"
        else tuple(f"{each.code}: {each.why}" for each in judgements if isinstance(each, RuledOut)),
        unread=evidence.unread,
    )


def _weigh(findings: Sequence[Finding]) -> list[Finding]:
    """Leave what no other finding contradicts or explains better, likeliest first."""
    standing = [
        finding
        for finding in findings
        if not any(_outweighs(other, finding) for other in findings if other is not finding)
    ]
    return sorted(standing, key=lambda finding: RANK[finding.confidence])


def _outweighs(one: Finding, other: Finding) -> bool:
    likelier = RANK[one.confidence] - RANK[other.confidence]
    if one.concern != other.concern or likelier > 0:
        return False
    mine, theirs = set(one.nodes), set(other.nodes)
    if other.code in one.excludes and mine & theirs:
        # Of two that exclude each other, equally likely, both stand.
        return likelier < 0 or one.code not in other.excludes
    # Next to what is certain, a guess about the same nodes says nothing.
    return one.confidence == "high" and likelier < 0 and theirs <= mine


def _unexplained(case: Case, findings: Iterable[Finding]) -> list[Agent]:
    """Agents whose best path fails for no reason that has been found."""
    stopped = {node for each in findings if each.concern == "http" for node in each.nodes}
    anyhow = stopped | {node for each in findings for node in each.nodes}
    return [
        agent
        for agent in case.agents
        if not agent.preferred
        and not agent.cut_short
        and agent.name not in (stopped if agent.paths and agent.paths[0].via == HTTP else anyhow)
    ]


def _unknown(case: Case, unexplained: Sequence[Agent]) -> Finding:
    met = [agent for agent in unexplained if not agent.pathless]
    outcomes = Counter(f"{a.paths[0].outcome} over {a.paths[0].via}" for a in met)
    if len(met) < len(unexplained):
        outcomes["no path applies"] = len(unexplained) - len(met)
    first = (met or unexplained)[0]
    said = f": {first.paths[0].message}" if first.paths else ", for one"
    address = first.addresses[0] if first.addresses else first.name
    fix = [
        f"# permit what was not read: {each.grant}" for each in case.evidence.unread if each.grant
    ]
    if len(met) < len(unexplained):
        fix.append(
            "# allow a transport that fits: http needs an address that leads there, portforward"
            " and exec a pod"
        )
    if met:
        fix += [
            f"tcpdump -ni any host {address} and tcp port {first.survey.target.port}"
            "  # on both nodes, while the gateway asks: where do packets stop?",
            "nstat -az TcpExtIPReversePathFilter  # there, growing: rp_filter drops them",
        ]
    return Finding(
        "unknown",
        "no known cause fits",
        "low",
        names(unexplained),
        (
            *(f"{how}: {n} of {len(case.agents)}" for how, n in outcomes.most_common(3)),
            f"{first.name}{said}",
        ),
        tuple(fix),
    )


def _verdict(case: Case) -> Verdict:
    agents = case.agents
    if case.survey.absent or any(agent.unreached for agent in agents):
        return "broken"
    if not agents or any(agent.cut_short for agent in agents):
        return "unknown"
    return "healthy" if all(agent.preferred for agent in agents) else "degraded"


def _headline(case: Case, verdict: Verdict, findings: Sequence[Finding]) -> str:
    """The verdict, in numbers, and the likeliest reason."""
    total = len({*names(case.agents), *(node for node, _ in case.survey.absent)})
    reached = [agent for agent in case.agents if agent.reached]
    detour = [agent for agent in reached if not agent.preferred]
    pathless = sum(agent.pathless for agent in case.agents)
    cut_short = sum(agent.cut_short for agent in case.agents)
    said = f"{len({*names(reached)})} of {total} nodes answer"
    if verdict == "unknown" and not any(agent.paths for agent in case.agents):
        return f"{verdict}: no path was tried"
    if detour:
        carriers = Counter(next(p.via for p in a.paths if p.outcome == "ok") for a in detour)
        by = few(via for via, _ in carriers.most_common())
        said += f", {len(detour)} of them over {by} only"
    elif verdict == "healthy":
        used = Counter(agent.paths[0].via for agent in reached)
        said += f" over {few(via for via, _ in used.most_common())}"
    if pathless:
        said += f", to {pathless} no path applies"
    if cut_short:
        said += f", {cut_short} {'was' if cut_short == 1 else 'were'} not looked at to the end"
    if not findings:
        return f"{verdict}: {said}"
    first = findings[0]
    if first.code == "unknown":
        return f"{verdict}: {said}. No known cause fits"
    # Where every node answers on its best path, it is the others that fail.
    what = "Fallback" if verdict == "healthy" else "Cause"
    return f"{verdict}: {said}. {what} ({first.confidence} confidence): {first.title}"
