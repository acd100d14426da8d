"""Causes in packets themselves and in the machines they pass: size, family, route, kernel."""

from __future__ import annotations

from mcp_gpu.fleet.diagnosis.case import Agent, Case, names
from mcp_gpu.fleet.diagnosis.cni import MTU_KEYS
from mcp_gpu.fleet.diagnosis.finding import Finding, Judgement, RuledOut, few
from mcp_gpu.fleet.diagnosis.model import Confidence

__all__ = ["address_family", "kernel_regression", "mtu", "node_network", "reverse_path"]

OVERHEAD = {"VXLAN": 50, "IPIP": 20, "Geneve": 50, "WireGuard": 60}
"""Bytes that wrapping adds to a packet of IPv4."""

REGRESSIONS = {"5.14.0-611": "intermittent loss with Calico on Red Hat's 5.14.0-611"}
"""Kernels that are known to lose pods' packets, by how their version begins."""

PEERS = 3
"""So many others in the same place that answer make one that does not a case of its own."""

SHARE = 5
"""At most one in so many: more is not one node's own trouble."""


def mtu(case: Case) -> Judgement:
    """Small answers arrive and large ones do not: packets are too large for some link."""
    found = [agent for agent in case.agents if agent.had("large_lost")]
    if not found:
        return None
    vias = sorted({p.via for a in found for p in a.paths if p.outcome == "large_lost"})
    over = " and ".join(vias)
    evidence = [f"small answers arrive from {few(names(found))} over {over}, large ones do not"]
    carried = [agent for agent in found if agent.carried]
    if carried:
        evidence.append("a padded answer arrives whole on another path")
    elif len(vias) > 1:
        evidence.append("on every path: it is the nodes' own link")
    overlay, felix = case.overlay, case.evidence.felix
    fix = [
        "ping -M do -c 2 -s 1422 NODE  # between the two nodes: 1450 bytes with headers;"
        " lower until it passes",
    ]
    if overlay is not None:
        bytes_more = OVERHEAD[overlay.kind]
        evidence.append(f"{overlay.said_by}: {bytes_more} bytes more a packet")
        fix.append(f"# pods' MTU has to be that of the path less {bytes_more}")
    key = MTU_KEYS.get(overlay.kind, "") if overlay is not None else ""
    if felix is not None and key in felix.mtus:
        evidence.append(f"FelixConfiguration default: {key} {felix.mtus[key]}")
    if felix is None and not case.pools:
        fix.append("# set the network plugin's MTU to it")
    elif key:
        fix.append(
            "kubectl patch felixconfigurations.crd.projectcalico.org default --type merge"
            f' -p \'{{"spec":{{"{key}":MTU}}}}\''
        )
    if felix is not None or case.pools:
        fix.append(
            "# with Calico's operator: kubectl patch installation default --type merge"
            ' -p \'{"spec":{"calicoNetwork":{"mtu":MTU}}}\''
        )
    fix.append("# pods take another MTU only when they are made anew")
    fix.append("# or let ICMP 'fragmentation needed' (type 3 code 4) pass where it is filtered")
    near = all(agent.relation == "same node" for agent in found)
    return Finding(
        "mtu",
        "large packets are lost: an MTU is larger than the path carries",
        "high" if (carried or len(vias) > 1) and not near else "medium",
        names(found),
        tuple(evidence),
        tuple(fix),
        "http" if any(agent.http == "large_lost" for agent in found) else "streams",
    )


def address_family(case: Case) -> Judgement:
    """Agents have addresses of a family that the gateway's pod has none of."""
    concerned = [agent for agent in case.agents if agent.lost and _literal(agent)]
    if case.pod is None or not case.pod.addresses:
        routeless = [
            a for a in concerned if a.http == "no_route" and _families(a.addresses) == {"IPv6"}
        ]
        return _family(routeless, "IPv6", "there is no route to them", "medium")
    own = _families(case.pod.addresses)
    strangers = [agent for agent in concerned if not own & _families(agent.addresses)]
    theirs = ", ".join(sorted({f for a in strangers for f in _families(a.addresses)}))
    why = f"the gateway's pod has {', '.join(sorted(own))} addresses only"
    return _family(strangers, theirs, why, "high")


def _family(agents: list[Agent], family: str, why: str, confidence: Confidence) -> Finding | None:
    if not agents:
        return None
    return Finding(
        "address-family",
        f"agents have {family} addresses, which the gateway cannot speak to",
        confidence,
        names(agents),
        (why, f"the address of {agents[0].name} is {agents[0].addresses[0]}"),
        (
            "kubectl get nodes -o custom-columns=NAME:.metadata.name,CIDRS:.spec.podCIDRs"
            "  # which families pods get",
            "# make the agents' Service dual-stack, ipFamilyPolicy: PreferDualStack, or run the"
            " gateway where it has that family",
        ),
        excludes=("crosssubnet-source-check", "overlay-blocked", "checksum-offload",
                  "reverse-path", "node-network"),
    )  # fmt: skip


def reverse_path(case: Case) -> Judgement:
    """Machines of several interfaces drop what comes in by another one than answers leave by."""
    lost = [agent for agent in case.remote if agent.lost]
    if not lost or case.home_lost:
        return None
    plain = [agent for agent in case.remote if agent.passes and not _several(agent)]
    if not all(_several(agent) for agent in lost):
        return None
    if any(agent.passes and _several(agent) for agent in case.remote):
        return RuledOut("reverse-path", "other nodes of several interfaces answer")
    return Finding(
        "reverse-path",
        "nodes of several interfaces may drop what arrives by another than they answer by"
        " (rp_filter)",
        "medium" if plain else "low",
        names(lost),
        (
            f"{few(names(lost))}: several InternalIPs of one family",
            f"{len(plain)} nodes of one interface answer" if plain else "no other node answers",
        ),
        (
            "sysctl net.ipv4.conf.all.rp_filter  # 1 is strict",
            "nstat -az TcpExtIPReversePathFilter  # grows while the gateway asks: this is it",
            "sysctl -w net.ipv4.conf.all.rp_filter=2  # loose",
        ),
    )


def node_network(case: Case) -> Judgement:
    """One node, or very few, cannot be reached over a network that serves its neighbours."""
    if not case.kubernetes:
        return None
    lost, beside = [], 0
    for relation in ("same subnet", "other subnets", "elsewhere"):
        peers = case.at(relation)
        passing = sum(agent.passes for agent in peers)
        ill = [agent for agent in peers if agent.lost]
        if ill and passing >= PEERS and len(ill) * SHARE <= len(peers):
            lost += ill
            beside += passing
    if not lost:
        return None
    carried = all(agent.carried for agent in lost)
    evidence = [f"{beside} nodes in the same place answer over http"]
    if carried:
        evidence.append("the agents themselves are alive: another path reaches them")
    evidence += [f"{a.name}: {a.node.trouble}" for a in lost[:1] if a.node and a.node.trouble]
    plugin = next(iter(case.evidence.plugins), None)
    here = f"--field-selector spec.nodeName={lost[0].survey.target.node}"
    fix = [f"kubectl get pods -A -o wide {here}  # is the network plugin's pod well there?"]
    if plugin is not None and plugin.selector:
        fix.append(f"kubectl -n {plugin.namespace} delete pod -l {plugin.selector} {here}")
    return Finding(
        "node-network",
        "the pod network of single nodes does not work: their network plugin, routes or firewall",
        "medium" if carried else "low",
        names(lost),
        tuple(evidence),
        tuple(fix),
    )


def kernel_regression(case: Case) -> Judgement:
    """Nodes whose kernel is known to lose packets."""
    troubled = [agent for agent in case.agents if agent.lost or agent.http == "reset"]
    for begins, what in REGRESSIONS.items():
        found = [a for a in troubled if a.node and a.node.kernel.startswith(begins)]
        if found:
            kernel = found[0].node.kernel if found[0].node else ""
            return Finding(
                "kernel-regression",
                f"a kernel that is known for it: {what}",
                "low",
                names(found),
                (f"{few(names(found))}: kernel {kernel}",),
                ("# update the kernel, or start the one before, on one node; then ask again",),
            )
    return None


def _several(agent: Agent) -> bool:
    """Whether its node has several addresses of one family."""
    addresses = agent.node.addresses if agent.node else ()
    return len(addresses) > len(_families(addresses))


def _literal(agent: Agent) -> bool:
    return bool(agent.addresses) and all(_families((a,)) for a in agent.addresses)


def _families(addresses: tuple[str, ...]) -> set[str]:
    """Of addresses that are no names."""
    families = set()
    for address in addresses:
        if ":" in address:
            families.add("IPv6")
        elif address.replace(".", "").isdecimal():
            families.add("IPv4")
    return families
