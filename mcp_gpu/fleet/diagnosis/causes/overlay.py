"""Causes in how pods' packets travel between nodes: as they are, or wrapped."""

from __future__ import annotations

from collections.abc import Sequence

from mcp_gpu.fleet.diagnosis.case import Agent, Case, names
from mcp_gpu.fleet.diagnosis.cni import FIRST_IPIP, FIRST_VXLAN, ROUTED, SOURCE_CHECK, IpPool
from mcp_gpu.fleet.diagnosis.finding import SHOWN, Finding, Judgement, RuledOut
from mcp_gpu.fleet.diagnosis.model import Code, Confidence
from mcp_gpu.fleet.diagnosis.nodes import NodeFacts, aws, instance

__all__ = ["checksum_offload", "overlay_blocked", "source_check"]

POOLS = "ippools.crd.projectcalico.org"
FELIX = "felixconfigurations.crd.projectcalico.org"

FEW = 10
"""One of so many may have an ailment of its own without spoiling a pattern."""

PERMISSIONS = "ec2:DescribeInstances and ec2:ModifyNetworkInterfaceAttribute"
"""What Calico needs to turn the check off."""

FIRST_POOL = (
    '[{"op":"replace","path":"/spec/calicoNetwork/ipPools/0/encapsulation","value":"VXLAN"}]'
)
"""What Calico's operator has to be told: it undoes a change of its pools."""

HOME_LOST = "http fails on the gateway's own node too, where no packet leaves the machine"


def source_check(case: Case) -> Judgement:
    """Pods' packets go as they are, if only within a subnet, and the fabric drops them.

    A source/destination check, on by default on EC2, lets an interface send and take only what
    has the machine's own address. Wrapped packets have it, and pods' own have not.
    """
    here, far = case.at("same subnet"), case.at("other subnets")
    lost = [agent for agent in here if agent.lost]
    if not lost:
        return None
    code: Code = "crosssubnet-source-check"
    pools_known = POOLS in case.evidence.read
    crossing = [pool for pool in case.pools if pool.crosses]
    direct = crossing or [pool for pool in case.pools if pool.unwrapped]
    overlay, routed = case.overlay, _routed(case)
    if case.home_lost:
        return RuledOut(code, HOME_LOST)
    if case.pools and not direct:
        return RuledOut(code, case.pools[0].says)
    if overlay is not None and not overlay.across_subnets_only and not overlay.assumed:
        return RuledOut(code, f"packets are wrapped all the same: {overlay.said_by}")
    contrast = _mostly(far, lost=False)
    if crossing and far and not contrast and case.subnets_sure:
        return RuledOut(code, "nodes of other subnets, whose packets are wrapped, are lost as well")
    first = _first_mode(case)
    whole = _mostly(here, lost=True)
    confidence: Confidence
    if direct and whole:
        sure = contrast or (case.on_aws and case.policies_allow)
        confidence = "high" if sure and case.subnets_sure else "medium"
        if crossing and far and not contrast:
            confidence = "low"  # all is lost, and which of it is wrapped is a guess
    elif direct and case.on_aws:
        confidence = "medium"  # some machines have the check on, others not
    elif routed and whole and case.on_aws:
        wrapped = overlay is not None and not overlay.across_subnets_only
        confidence = "low" if wrapped and not contrast else "medium"
    elif not pools_known and whole and contrast:
        confidence = "medium" if case.on_aws or first else "low"
    else:
        return None
    evidence = [f"{len(lost)} of {len(here)} nodes of the gateway's subnet are lost over http"]
    if case.at("same node"):
        evidence.append("the gateway's own node answers")
    if far:
        evidence.append(f"{sum(a.passes for a in far)} of {len(far)} of other subnets answer")
    evidence.extend(pool.says for pool in direct)
    if first and not direct:
        evidence.append(first)
    if case.on_aws:
        evidence.append("EC2 instances: the check is on unless somebody has turned it off")
    if _set_off(case):
        confidence = "medium" if confidence == "high" else confidence
        evidence.append(f"awsSrcDstCheck is Disable already: Calico needs {PERMISSIONS} for it")
    if direct and not crossing:  # nobody's packets are wrapped, near or far
        lost += [agent for agent in far if agent.lost]
    unwrapped = "within a subnet are not wrapped (CrossSubnet)"
    if routed or (direct and not crossing):
        unwrapped = "are not wrapped between nodes"
    return Finding(
        code,
        f"pods' packets {unwrapped}, and a source/destination check drops them",
        confidence,
        names(lost),
        tuple(evidence),
        _source_check_fix(case, direct, lost),
        excludes=(
            *("overlay-blocked", "checksum-offload", "security-group", "cni-policy"),
            *("reverse-path", "node-network", "kernel-regression"),
        ),
    )


def overlay_blocked(case: Case) -> Judgement:
    """Something between nodes drops the packets that pods' packets are wrapped in."""
    overlay = case.overlay
    if not case.lost or not case.node_name:
        return None
    if overlay is None:
        known = case.pools or case.evidence.plugins
        why = "nothing shows that pods' packets are wrapped between nodes"
        return RuledOut("overlay-blocked", why) if known else None
    wrapped = _wrapped(case)
    lost = [agent for agent in wrapped if agent.lost]
    passing = [agent for agent in wrapped if agent.passes]
    if not lost:
        why = f"every node that is reached by {overlay.kind} answers"
        return RuledOut("overlay-blocked", why) if passing else None
    if case.home_lost:
        return RuledOut("overlay-blocked", HOME_LOST)
    evidence = [f"{len(lost)} of {len(wrapped)} nodes reached by {overlay.kind} are lost over http"]
    across = overlay.across_subnets_only
    direct = [a for a in case.at("same subnet") if across and a.passes]
    confidence: Confidence
    if across and not case.subnets_sure:
        if passing:
            return None  # who of them is reached by it is not known
        confidence = "low"
    elif passing:
        split = case.split(wrapped, "node group", "zone", "subnet")
        if split is None:
            if not _mostly(wrapped, lost=True):
                why = f"{overlay.kind} reaches {len(passing)} of {len(wrapped)} nodes"
                return RuledOut("overlay-blocked", why)
            confidence = "low"
        else:
            evidence.append(split.line)
            confidence = "high" if split.firm and not overlay.assumed else "medium"
    elif direct:
        evidence.append(f"{len(direct)} of the same subnet, which are reached without, answer")
        confidence = "high"
    else:
        confidence = "medium" if case.policies_allow and not overlay.assumed else "low"
    evidence.append(overlay.said_by)
    return Finding(
        "overlay-blocked",
        f"{overlay.kind} between nodes is dropped: {overlay.carrier} has to pass",
        confidence,
        names(lost),
        tuple(evidence),
        _overlay_fix(case, lost),
        excludes=("crosssubnet-source-check", "node-network"),
    )


def checksum_offload(case: Case) -> Judgement:
    """Network cards that send wrapped packets with a wrong checksum: the far kernel drops them."""
    overlay = case.overlay
    if overlay is None or overlay.kind != "VXLAN" or case.home_lost or not case.node_name:
        return None
    wrapped = _wrapped(case)
    lost = [agent for agent in wrapped if agent.lost]
    if not lost:
        return None
    split = case.split(wrapped, "kernel")
    if split is None and any(agent.passes for agent in wrapped):
        return None
    evidence = [f"{len(lost)} of {len(wrapped)} nodes reached by VXLAN are lost over http"]
    if split is not None:
        evidence.append(split.line)
    cilium = case.plugin("cilium") is not None
    device = "vxlan.calico" if case.pools else "cilium_vxlan" if cilium else "flannel.1"
    return Finding(
        "checksum-offload",
        "checksums of VXLAN packets may be spoilt by the network card's offload",
        "medium" if split is not None and split.firm else "low",
        names(lost),
        tuple(evidence),
        (
            f"ethtool -K {device} tx-checksum-ip-generic off  # on both nodes, then ask again",
            "# ping between pods works and TCP hangs, connecting after 1, 3, 7 or 63 s: this is it",
            "# vSphere: another VXLAN port than 8472 avoids it too",
        ),
    )


def _routed(case: Case) -> bool:
    """Whether a plugin other than Calico carries pods' packets, and may do so as they are."""
    kinds = {plugin.kind for plugin in case.evidence.plugins}
    return bool(kinds) and not case.pools and not kinds & (ROUTED | {"calico"})


def _wrapped(case: Case) -> list[Agent]:
    """Agents to whom packets are wrapped; all to whom they may be, where subnets are a guess."""
    overlay = case.overlay
    across = overlay is not None and overlay.across_subnets_only and case.subnets_sure
    return [a for a in case.remote if not across or a.relation == "other subnets"]


def _mostly(agents: Sequence[Agent], *, lost: bool) -> bool:
    """Whether nearly all of those who say something are lost, or nearly all get through."""
    numbers = {side: sum(a.lost if side else a.passes for a in agents) for side in (True, False)}
    return numbers[lost] > 0 and numbers[not lost] * FEW <= numbers[lost]


def _first_mode(case: Case) -> str:
    """What Calico was told to begin with, where its pools may not be read."""
    plugin = case.plugin("calico")
    for name in (FIRST_VXLAN, FIRST_IPIP):
        if plugin is not None and plugin.settings.get(name) == "CrossSubnet":
            return f"DaemonSet {plugin.namespace}/{plugin.name} began with {name}=CrossSubnet"
    return ""


def _set_off(case: Case) -> bool:
    plugin, felix = case.plugin("calico"), case.evidence.felix
    said = plugin.settings.get(SOURCE_CHECK, "") if plugin else ""
    return (said or (felix.source_check if felix else "")) == "Disable"


def _source_check_fix(
    case: Case, direct: Sequence[IpPool], lost: Sequence[Agent]
) -> tuple[str, ...]:
    lines = ["# one of these is enough; the first needs nobody's cloud account"]
    if _routed(case):
        lines.append(
            "# have the network plugin wrap packets: flannel's vxlan, Cilium's tunnel mode"
        )
    else:
        for pool in direct or (IpPool("default-ipv4-ippool", ""),):
            mode = "ipipMode" if pool.ipip == "CrossSubnet" else "vxlanMode"
            lines.append(_patch(POOLS, pool.name, f'{{"spec":{{"{mode}":"Always"}}}}'))
        lines.append(
            "# with Calico's operator instead: kubectl patch installation default --type json"
            f" -p '{FIRST_POOL}'"
        )
        if case.on_aws or case.node is None:
            off = _patch(FELIX, "default", '{"spec":{"awsSrcDstCheck":"Disable"}}')
            lines.append(f"{off}  # EC2: the nodes' role needs {PERMISSIONS}")
    if not case.on_aws and case.node is not None:
        lines.append("# or let the fabric pass pods' addresses at these machines' ports")
    machines = [node for node in (case.node, *(agent.node for agent in lost)) if node is not None]
    machines = [node for node in machines if instance(node)]
    if machines:
        each = aws("modify-network-interface-attribute", machines[0])
        lines.append(
            "# or by hand on each node; on one of several interfaces for each of them:"
            f" {each} --network-interface-id ENI --no-source-dest-check"
        )
    lines += [_attribute(node) for node in machines[: SHOWN + 1]]
    if len(machines) > SHOWN + 1:
        lines.append(f"# and the same for {len(machines) - SHOWN - 1} more of this subnet")
    return tuple(lines)


def _attribute(node: NodeFacts) -> str:
    return (
        f"{aws('modify-instance-attribute', node)} --instance-id {instance(node)}"
        f" --no-source-dest-check  # {node.name}"
    )


def _overlay_fix(case: Case, lost: Sequence[Agent]) -> tuple[str, ...]:
    overlay = case.overlay
    assert overlay is not None
    port = overlay.udp_port
    filtered = f"udp port {port}" if port else "ip proto 4"
    lines = [
        f"# let {overlay.carrier} pass between all nodes, both ways: security groups, firewalls",
        f"tcpdump -ni any {filtered}  # on {lost[0].name}: nothing arrives while the gateway asks",
    ]
    machines = [n for n in (case.node, *(agent.node for agent in lost)) if n and instance(n)]
    if machines:
        ids = " ".join(instance(node) for node in machines[: SHOWN + 1])
        protocol = f"--protocol udp --port {port}" if port else "--protocol 4"
        lines += [
            f"{aws('describe-instances', machines[0])} --instance-ids {ids}"
            " --query 'Reservations[].Instances[].[InstanceId,SecurityGroups[].GroupId]'",
            f"{aws('authorize-security-group-ingress', machines[0])} --group-id NODES_GROUP"
            f" {protocol} --source-group OTHER_NODES_GROUP",
        ]
    return tuple(lines)


def _patch(resource: str, name: str, patch: str) -> str:
    return f"kubectl patch {resource} {name} --type merge -p '{patch}'"
