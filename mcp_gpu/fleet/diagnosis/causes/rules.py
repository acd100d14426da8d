"""Causes that somebody has written down: policies of Kubernetes and of network plugins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mcp_gpu.fleet.diagnosis.case import DROPPED, Agent, Case, names
from mcp_gpu.fleet.diagnosis.finding import Finding, Judgement, RuledOut, few
from mcp_gpu.fleet.diagnosis.model import Confidence
from mcp_gpu.fleet.diagnosis.pods import PodFacts
from mcp_gpu.fleet.diagnosis.policies import NAMESPACE_NAME

__all__ = ["cni_policy", "network_policy"]

UNENFORCING = frozenset({"flannel"})
"""Plugins that do nothing about NetworkPolicies."""

STABLE_LABELS = (
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/component",
)

PASSING_LABELS = ("pod-template-hash", "controller-revision-hash", "pod-template-generation")
"""Labels that change with every rollout."""


def network_policy(case: Case) -> Judgement:
    """A NetworkPolicy that selects the agents, or the gateway, allows it no connection to them."""
    decisions = case.decisions
    denied = [a for a in case.agents if a.name in decisions and decisions[a.name].allowed is False]
    if not denied:
        if not case.lost or not case.policies_allow:
            return None
        count = len(case.evidence.policies)
        said = f"{count} read, and they allow it" if count else "there are none"
        return RuledOut("network-policy", f"NetworkPolicies: {said}")
    first = decisions[denied[0].name]
    named = f"NetworkPolicy {few(first.policies)}"
    answering = [a for a in denied if a.http == "ok" and a.relation != "same node"]
    if answering:
        why = f"{named} forbids it, and yet {len(answering)} nodes answer: nothing enforces it"
        return RuledOut("network-policy", why)
    stopped = [
        a for a in denied if a.http in DROPPED | {"refused"} and not a.down and not a.cut_off
    ]
    if not stopped:
        return None
    kinds = {plugin.kind for plugin in case.evidence.plugins}
    confidence: Confidence = "high"
    if all(agent.http == "refused" for agent in stopped) or (kinds and kinds <= UNENFORCING):
        confidence = "medium"
    first = decisions[stopped[0].name]
    port, namespace = stopped[0].survey.target.port, stopped[0].survey.target.namespace
    own = case.survey.place.namespace
    if first.direction == "ingress":
        where, missing = namespace, f"ingress from {_named(case.pod, own)} on TCP {port}"
    else:
        where, missing = own, f"egress to {_named(stopped[0].pod, namespace)} on TCP {port}"
    selected = "agents" if first.direction == "ingress" else "gateway"
    evidence = [
        f"NetworkPolicy {few(first.policies)} of namespace {where} selects the {selected}, and no"
        " rule allows it",
        f"missing: {missing}",
    ]
    return Finding(
        "network-policy",
        f"NetworkPolicy {few(first.policies)} does not allow the gateway to reach the agents",
        confidence,
        names(stopped),
        tuple(evidence),
        _fix(case, stopped[0], first.direction, missing),
        excludes=(
            *("crosssubnet-source-check", "overlay-blocked", "checksum-offload", "cni-policy"),
            *("security-group", "reverse-path", "node-network", "kernel-regression"),
            *("agent-on-loopback", "agent-not-listening"),
        ),
    )


def cni_policy(case: Case) -> Judgement:
    """A policy of Cilium's or Calico's own may select the agents; it is not evaluated."""
    others = case.evidence.other_policies
    if not case.lost or not others or not case.node_name:
        return None
    ends = [*(agent for agent in case.agents if agent.pod is not None)]
    found = [
        policy
        for policy in others
        if any(a.lost and a.pod is not None and policy.may_select(a.pod) for a in ends)
        and not any(a.http == "ok" and a.pod is not None and policy.may_select(a.pod) for a in ends)
    ]
    if not found:
        return RuledOut("cni-policy", "agents that such policies may select answer")
    return Finding(
        "cni-policy",
        "a policy of the network plugin's own may forbid it",
        "medium" if case.home_lost else "low",
        names(case.lost),
        (
            f"{few(policy.title for policy in found)}: may select the agents; not evaluated",
            *(["the gateway's own node is lost too: not a matter of links"] * case.home_lost),
        ),
        tuple(f"kubectl get {policy.title} -o yaml" for policy in found[:3]),
    )


def _named(pod: PodFacts | None, namespace: str) -> str:
    if pod is None:
        return f"pods of namespace {namespace}"
    if pod.host_network:
        return f"the node addresses {few(pod.addresses)}"
    labels = ",".join(f"{name}={value}" for name, value in _stable(pod.labels).items())
    return f"pods {labels} of namespace {namespace}"


def _stable(labels: Mapping[str, str]) -> Mapping[str, str]:
    """Labels that mean this pod and its successors."""
    chosen = {name: labels[name] for name in STABLE_LABELS if name in labels}
    return chosen or {k: v for k, v in labels.items() if k not in PASSING_LABELS}


def _fix(case: Case, agent: Agent, direction: str, missing: str) -> tuple[str, ...]:
    """A policy to add: they only ever allow more. No ready one where it would allow much more."""
    target, own = agent.survey.target, case.survey.place.namespace
    ingress = direction == "ingress"
    selected, other = (agent.pod, case.pod) if ingress else (case.pod, agent.pod)
    namespace, far = (target.namespace, own) if ingress else (own, target.namespace)
    kind, key, side = ("Ingress", "ingress", "from") if ingress else ("Egress", "egress", "to")
    if other is not None and other.host_network and case.plugin("cilium") is not None:
        return (
            "# Cilium means no node by a block: add a CiliumNetworkPolicy in namespace"
            f" {namespace} with {side}Entities: [host, remote-node] on TCP {target.port}",
        )
    pods, peers = _selector(selected), _peers(other, far)
    if not pods or not peers:
        return (
            f"# add a NetworkPolicy in namespace {namespace} that allows {missing}; by which labels"
            " it has to select is not known here",
        )
    lines = [
        "kubectl apply -f - <<'EOF'",
        "apiVersion: networking.k8s.io/v1",
        "kind: NetworkPolicy",
        f"metadata: {{name: allow-mcp-gpu-{key}, namespace: {namespace}}}",
        "spec:",
        f"  podSelector: {pods}",
        f"  policyTypes: [{kind}]",
        f"  {key}:",
        f"    - ports: [{{port: {target.port}, protocol: TCP}}]",
        f"      {side}:",
        *peers,
        "EOF",
    ]
    return ("\n".join(lines),)


def _peers(pod: PodFacts | None, namespace: str) -> Sequence[str]:
    """What allows this pod and its successors; empty where that cannot be said."""
    if pod is not None and pod.host_network:
        return [f"        - ipBlock: {{cidr: {_single(each)}}}" for each in pod.addresses]
    pods = _selector(pod)
    if not pods:
        return []
    named = f"{{matchLabels: {{{NAMESPACE_NAME}: {namespace}}}}}"
    return [f"        - namespaceSelector: {named}", f"          podSelector: {pods}"]


def _selector(pod: PodFacts | None) -> str:
    """What selects this pod and its successors; empty where no label does: never every pod."""
    labels = _stable(pod.labels) if pod is not None else {}
    return f"{{matchLabels: {{{_pairs(labels.items())}}}}}" if labels else ""


def _pairs(labels: Iterable[tuple[str, str]]) -> str:
    # Quoted: a value such as "true" or "1" has to stay a string.
    return ", ".join(f'{name}: "{value}"' for name, value in labels)


def _single(address: str) -> str:
    return f"{address}/{128 if ':' in address else 32}"
