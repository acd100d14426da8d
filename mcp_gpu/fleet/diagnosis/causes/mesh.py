"""Causes in proxies that a service mesh puts before pods."""

from __future__ import annotations

from mcp_gpu.fleet.connectivity.model import Outcome
from mcp_gpu.fleet.diagnosis.case import TLS, Agent, Case, names
from mcp_gpu.fleet.diagnosis.finding import Finding, Judgement, RuledOut
from mcp_gpu.fleet.diagnosis.mesh import excluded, strict
from mcp_gpu.fleet.diagnosis.pods import EXCLUDED_PORTS, REDIRECTION, PodFacts

__all__ = ["mesh_mtls"]

TURNED_AWAY: frozenset[Outcome] = TLS | {"reset", "http_error", "forbidden"}
"""What a proxy does to a connection that it does not take."""


def mesh_mtls(case: Case) -> Judgement:
    """A mesh's proxy takes only the mesh's own TLS, which the other end does not speak."""
    turned = [agent for agent in case.agents if agent.http in TURNED_AWAY]
    if not turned:
        return None
    ours = case.pod.mesh if case.pod else ""
    unequal = [agent for agent in turned if _differs(agent, ours)]
    if not unequal:
        known = all(agent.pod is not None for agent in turned)
        why = "agents and gateway have the same proxies, or none, before them"
        return RuledOut("mesh-mtls", why) if known and case.pod is not None else None
    first = unequal[0]
    assert first.pod is not None
    port, target = first.survey.target.port, first.survey.target
    policy = strict(case.evidence.authentications, first.pod, port)
    mesh = first.pod.mesh or ours
    alike = [a for a in case.agents if a.http == "ok" and _differs(a, ours)]
    if alike:
        why = "agents whose proxies differ from the gateway's in the same way answer"
        return RuledOut("mesh-mtls", why)
    there = f"{mesh} stands before {'the agents' if first.pod.mesh else 'the gateway'}"
    evidence = [
        f"{there} and not before the other end",
        f"{first.name}: {first.message(first.http)}",
    ]
    if policy:
        evidence.append(f"PeerAuthentication {policy} is STRICT")
    fix = [_exclusion(first.pod, target.namespace, port)] if first.pod.mesh else []
    fix.append("# or take both ends into the mesh, or both out of it")
    return Finding(
        "mesh-mtls",
        f"{mesh} stands between gateway and agents, and only one end speaks its TLS",
        "high" if policy else "medium",
        names(unequal),
        tuple(evidence),
        tuple(fix),
        excludes=(
            "tls",
            "tls-scheme",
            "certificate-untrusted",
            "certificate-name",
            "token-rejected",
        ),
    )


def _exclusion(pod: PodFacts, namespace: str, port: int) -> str:
    """How the agents' port is kept out of the proxy."""
    if pod.annotations.get(REDIRECTION) == "enabled":
        return (
            "# ambient mode leaves out no single port: label the agents' pods"
            " istio.io/dataplane-mode=none, or have a PeerAuthentication PERMISSIVE for the port"
        )
    note = EXCLUDED_PORTS.get(pod.mesh)
    if note is None:
        return f"# have {pod.mesh} leave out TCP {port} of the agents' pods"
    patch = f'{{"spec":{{"template":{{"metadata":{{"annotations":{{"{note}":"{port}"}}}}}}}}}}'
    owner = pod.owner or "daemonset/AGENTS"
    return f"kubectl -n {namespace} patch {owner} --type merge -p '{patch}'"


def _differs(agent: Agent, ours: str) -> bool:
    """Whether one end has a proxy that the other has not, on this port."""
    if agent.pod is None or excluded(agent.pod, agent.survey.target.port):
        return False
    return agent.pod.mesh != ours
