"""Causes in the network of AWS: what its CNI rewrites, and its security groups."""

from __future__ import annotations

import json

from mcp_gpu.fleet.diagnosis.case import Agent, Case, names
from mcp_gpu.fleet.diagnosis.cni import ENABLE_POD_ENI, EXTERNAL_SNAT
from mcp_gpu.fleet.diagnosis.finding import SHOWN, Finding, Judgement, RuledOut
from mcp_gpu.fleet.diagnosis.model import Confidence
from mcp_gpu.fleet.diagnosis.nodes import aws, instance
from mcp_gpu.fleet.diagnosis.pods import POD_ENI, PodFacts

__all__ = ["external_snat", "pod_security_group", "security_group"]


def external_snat(case: Case) -> Judgement:
    """What pods send outside of the VPC gets the node's address, which nobody there expects."""
    plugin = case.plugin("vpc-cni")
    if plugin is None or not case.lost or not case.on_aws:
        return None
    outside = [agent for agent in case.lost if _elsewhere(agent)]
    if not outside:
        return None
    said = plugin.settings.get(EXTERNAL_SNAT, "false").lower()
    if said == "true":
        return RuledOut("vpc-cni-snat", f"{EXTERNAL_SNAT} is true")
    if any(agent.passes and _elsewhere(agent) for agent in case.agents):
        return RuledOut("vpc-cni-snat", "other nodes outside of EC2 answer")
    inside = [a for a in case.remote if not _elsewhere(a)]
    if any(agent.lost for agent in inside):
        return RuledOut("vpc-cni-snat", "nodes in EC2 are lost as well")
    return Finding(
        "vpc-cni-snat",
        "the VPC CNI rewrites the source of what pods send outside of the VPC",
        "medium" if inside else "low",
        names(outside),
        (
            f"{len(outside)} nodes that are no EC2 instances are lost over http",
            f"DaemonSet {plugin.namespace}/{plugin.name}: {EXTERNAL_SNAT} is {said}",
        ),
        (
            f"kubectl -n {plugin.namespace} set env daemonset/{plugin.name} {EXTERNAL_SNAT}=true",
            "# pods then need a NAT gateway for the internet; and routes to the pods' addresses"
            " have to exist on both sides",
        ),
    )


def pod_security_group(case: Case) -> Judgement:
    """A pod with a network interface of its own has security groups of its own, too."""
    if not case.lost:
        return None
    branch = [agent for agent in case.lost if _has_eni(agent.pod)]
    ours = _has_eni(case.pod)
    concerned = case.lost if ours else branch
    if not concerned:
        return None
    if any(a.passes and (ours or _has_eni(a.pod)) for a in case.agents):
        return RuledOut("pod-security-group", "pods with interfaces of their own answer")
    plain = [a for a in case.agents if a.passes]
    plugin = case.plugin("vpc-cni")
    on = plugin is not None and plugin.settings.get(ENABLE_POD_ENI, "").lower() == "true"
    confidence: Confidence = "high" if plain and not ours and (on or len(branch) > 1) else "medium"
    holder = case.pod if ours else branch[0].pod
    assert holder is not None
    evidence = [
        f"pod {holder.namespace}/{holder.name} has an interface of its own ({POD_ENI})",
        *([f"{len(plain)} agents without one answer"] if plain else []),
        *([f"{ENABLE_POD_ENI} is true"] if on else []),
    ]
    port = concerned[0].survey.target.port
    where = case.node or concerned[0].node
    return Finding(
        "pod-security-group",
        "security groups of the pods' own interfaces do not let the gateway in",
        confidence,
        names(concerned),
        tuple(evidence),
        (
            "kubectl get securitygrouppolicies -A",
            f"{aws('describe-network-interfaces', where)} --network-interface-ids {_eni(holder)}"
            " --query 'NetworkInterfaces[].Groups'",
            f"{aws('authorize-security-group-ingress', where)} --group-id AGENTS_GROUP"
            f" --protocol tcp --port {port} --source-group GATEWAY_GROUP",
        ),
        excludes=("security-group", "node-network"),
    )


def security_group(case: Case) -> Judgement:
    """Without an overlay, the nodes' security groups decide about the agents' port itself."""
    lost = [agent for agent in case.remote if agent.lost]
    routed = case.plugin("vpc-cni") is not None and not case.pools
    if not lost or not routed or not case.on_aws or case.home_lost:
        return None
    evidence = ["pods have addresses of the VPC: nodes' security groups hold for their ports"]
    split = case.split(case.remote, "node group", "zone", "subnet")
    confidence: Confidence
    if split is not None:
        confidence = "high" if split.firm and case.policies_allow else "medium"
        evidence.append(split.line)
    elif any(agent.passes for agent in case.remote):
        return None
    else:
        confidence = "medium" if case.policies_allow else "low"
        evidence.append(f"all {len(lost)} other nodes are lost over http")
    machines = [n for n in (case.node, *(agent.node for agent in lost)) if n and instance(n)]
    ids = " ".join(instance(node) for node in machines[: SHOWN + 1]) or "INSTANCES"
    where = machines[0] if machines else None
    port = lost[0].survey.target.port
    return Finding(
        "security-group",
        f"the nodes' security groups do not let TCP {port} pass between nodes",
        confidence,
        names(lost),
        tuple(evidence),
        (
            f"{aws('describe-instances', where)} --instance-ids {ids}"
            " --query 'Reservations[].Instances[].[InstanceId,SecurityGroups[].GroupId]'",
            f"{aws('authorize-security-group-ingress', where)} --group-id AGENT_NODES_GROUP"
            f" --protocol tcp --port {port} --source-group GATEWAY_NODES_GROUP",
        ),
        excludes=("node-network",),
    )


def _elsewhere(agent: Agent) -> bool:
    """Whether the node is known to be no EC2 instance, such as a hybrid one."""
    return agent.node is not None and not agent.node.provider_id.startswith("aws:")


def _has_eni(pod: PodFacts | None) -> bool:
    return pod is not None and POD_ENI in pod.annotations


def _eni(pod: PodFacts) -> str:
    """The id in the annotation, a list of one interface; a placeholder if it holds none."""
    try:
        found = json.loads(pod.annotations[POD_ENI])[0]["eniId"]
    except (ValueError, LookupError, TypeError):
        return "ENI"
    return str(found)
