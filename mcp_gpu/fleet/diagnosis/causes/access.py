"""Causes in who may do what, and in the API server's own way to the kubelets."""

from __future__ import annotations

from collections.abc import Sequence

from mcp_gpu.fleet.connectivity.model import Outcome
from mcp_gpu.fleet.diagnosis.case import NO_KUBELET, Agent, Case, names
from mcp_gpu.fleet.diagnosis.finding import Finding, Judgement, few
from mcp_gpu.fleet.diagnosis.model import Code

__all__ = [
    "admission",
    "api_unreachable",
    "credentials",
    "host_not_allowed",
    "kubelet_unreachable",
    "no_relay",
    "rbac",
    "token_rejected",
]

WRONG_HOST = "HTTP 421"
"""How the http transport begins a refusal of the name that an agent was called by."""


def kubelet_unreachable(case: Case) -> Judgement:
    """The API server has no way to a kubelet, so that exec, port-forward and logs fail there.

    It says so, or its streams are silent to an agent that answers over HTTP, or to all agents.
    """
    tried = [agent for agent in case.agents if agent.streams]
    told = [agent for agent in tried if agent.had("kubelet_unreachable")]
    silent = [a for a in tried if all(path.outcome == "silent" for path in a.streams)]
    silent = [a for a in silent if a.http == "ok" or case.streams_silent]
    found = [a for a in (*told, *silent) if not a.cut_off]
    if not found:
        return None
    evidence = [f"{len(found)} of {len(tried)} nodes: {found[0].message(*NO_KUBELET)}"]
    evidence += [f"{a.name}: {a.node.trouble}" for a in found[:1] if a.node and a.sick]
    if any(agent.http == "ok" for agent in silent):
        evidence.append("the agents themselves answer over http")
    sure = all(agent in told or agent.sick for agent in found)
    everywhere = len(found) == len(tried) > 1
    if everywhere:
        evidence.append("everywhere: the control plane's tunnel (konnectivity) or firewall")
    node = found[0].survey.target.node
    return Finding(
        "kubelet-unreachable",
        "the API server cannot reach kubelets, so streams through it fail",
        "high" if sure else "medium",
        names(found),
        tuple(evidence),
        (
            "# let TCP 10250 pass from the control plane to the nodes"
            + ("; or mend the tunnel's agents (konnectivity)" if everywhere else ""),
            f"kubectl get --raw /api/v1/nodes/{node}/proxy/healthz  # as an administrator",
        ),
        "streams",
    )


def api_unreachable(case: Case) -> Judgement:
    """The gateway does not reach the API server."""
    return _stream_cause(
        case,
        "api_unreachable",
        "api-unreachable",
        "the gateway does not reach the API server",
        ("# from the gateway: DNS, proxy (NO_PROXY), egress policies, the kubeconfig's server",),
    )


def credentials(case: Case) -> Judgement:
    """The API server takes the gateway's credentials no more."""
    return _stream_cause(
        case,
        "credentials",
        "api-credentials",
        "the gateway's Kubernetes credentials are not accepted",
        ("# log in again, or mend the kubeconfig or ServiceAccount; then: kubectl auth whoami",),
    )


def rbac(case: Case) -> Judgement:
    """RBAC grants the gateway no streams."""
    found = _failing(case, "rbac")
    if not found:
        return None
    vias = sorted({path.via for a in found for path in a.streams if path.outcome == "rbac"})
    namespace = found[0].survey.target.namespace
    resources = ",".join(f"pods/{via}" for via in vias)
    pod = case.pod
    subject = (
        f"--serviceaccount={pod.namespace}:{pod.account}"
        if pod is not None and pod.account
        else "--user=USER"
    )
    return Finding(
        "stream-rbac",
        f"RBAC does not let the gateway use {' and '.join(vias)}",
        "high",
        names(found),
        (f"{found[0].name}: {found[0].message('rbac')}",),
        (
            f"kubectl -n {namespace} create role mcp-gpu-streams --verb=get,create"
            f" --resource={resources}",
            f"kubectl -n {namespace} create rolebinding mcp-gpu-streams --role=mcp-gpu-streams"
            f" {subject}",
        ),
        "streams",
    )


def admission(case: Case) -> Judgement:
    """A policy or webhook of admission denies streams that RBAC grants."""
    return _stream_cause(
        case,
        "admission",
        "stream-admission",
        "admission denies streams into the agents' pods",
        (
            "kubectl get validatingadmissionpolicies,validatingwebhookconfigurations"
            "  # look for CONNECT on pods/exec or pods/portforward",
        ),
    )


def no_relay(case: Case) -> Judgement:
    """What a stream starts is not there."""
    return _stream_cause(
        case,
        "no_command",
        "no-relay",
        "the command that carries a stream cannot be started",
        ("# exec needs mcp-gpu in the agent's image; command needs its program at the gateway",),
    )


def token_rejected(case: Case) -> Judgement:
    """The agent does not take the gateway's token, or something before it forbids the call."""
    found = [
        a
        for a in case.agents
        if a.had("unauthorized") or (a.had("forbidden") and not _wrong_host(a))
    ]
    if not found:
        return None
    answered = [agent for agent in case.agents if agent.http == "ok"]
    evidence = [f"{found[0].name}: {found[0].message('unauthorized', 'forbidden')}"]
    if answered:
        evidence.append(f"{len(answered)} others take the same token: these are set otherwise")
    fix: tuple[str, ...]
    if case.outside:
        title, fix = (
            "agents want a token, and exec needs none",
            (
                "# exec first: --transports http,exec,portforward; or --agent-token-file FILE with"
                " --agent-scheme https",
            ),
        )
    else:
        title, fix = (
            "agents do not accept the gateway's token",
            (
                "# what MCP_GPU_AGENT_TOKEN_FILE holds, as a rule the projected token of the"
                " gateway's account, needs an audience of the agents' MCP_GPU_TOKEN_AUDIENCES and a"
                " subject of their MCP_GPU_TOKEN_SUBJECTS",
                "# agents believe such tokens with MCP_GPU_KUBERNETES_TOKENS=jwks or review; with"
                " MCP_GPU_TOKEN_FILE both files have to hold the same. All are read again",
            ),
        )
    plain = all(agent.had("unauthorized") for agent in found) and not case.outside
    return Finding(
        "token-rejected",
        title,
        "high" if plain else "medium",
        names(found),
        tuple(evidence),
        fix,
    )


def host_not_allowed(case: Case) -> Judgement:
    """The agent does not serve the name that it is called by."""
    found = [agent for agent in case.agents if _wrong_host(agent)]
    if not found:
        return None
    return Finding(
        "host-not-allowed",
        "agents do not serve the name they are called by",
        "high",
        names(found),
        (f"{found[0].name}: {found[0].message('forbidden')}",),
        ("# name it in the agents' MCP_GPU_ALLOWED_HOSTS, or reach them by address",),
    )


def _stream_cause(
    case: Case, outcome: Outcome, code: Code, title: str, fix: tuple[str, ...]
) -> Finding | None:
    """A cause that the failure itself names."""
    found = _failing(case, outcome)
    if not found:
        return None
    evidence = f"{few(names(found))}: {found[0].message(outcome)}"
    return Finding(code, title, "high", names(found), (evidence,), fix, "streams")


def _failing(case: Case, outcome: Outcome) -> Sequence[Agent]:
    return [a for a in case.agents if any(path.outcome == outcome for path in a.streams)]


def _wrong_host(agent: Agent) -> bool:
    return agent.message("forbidden").startswith(WRONG_HOST)
