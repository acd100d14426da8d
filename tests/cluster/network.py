"""The wires: a fabric of two subnets, and pods' traffic over it as Calico's CrossSubnet sends it.

Within a subnet a packet between pods goes as it is, its addresses those of the pods; to
another subnet it goes by VXLAN, its addresses those of the nodes. The fabric knows no pod.
The machine that all of this runs on gets one link to it and one route.
"""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from cluster.machine import Namespace
from cluster.plan import CONTROL, POD_NETWORK, SUBNETS, NodePlan, Plan
from cluster.process import run

if TYPE_CHECKING:
    from cluster.node import Node

__all__ = ["BRIDGE", "POD_MTU", "TUNNEL", "VXLAN_PORT", "Network", "same_subnet"]

TUNNEL = "vxlan.calico"
BRIDGE = "cni0"

POD_MTU = 1450
"""Leaves room for VXLAN's 50 bytes."""

VXLAN_ID = 4096
VXLAN_PORT = 4789


def same_subnet(one: NodePlan, other: NodePlan) -> bool:
    return one.subnet == other.subnet


class Network:
    """All namespaces of the cluster, wired."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.fabric = Namespace(plan, "fabric")
        self.client = Namespace(plan, "client")

    def create_fabric(self) -> None:
        """The fabric, and what is attached to it without being of the cluster."""
        self.fabric.create()
        # What one port sends another of the same subnet is the bridge's business alone.
        bridging = {"bridge.bridge-nf-call-iptables": 0}
        self.fabric.sysctl(**{"ipv4.ip_forward": 1}, **bridging)
        for subnet in SUBNETS:
            self.fabric.ip(
                f"link add br-{subnet} type bridge",
                f"addr add {self.plan.router(subnet)}/24 dev br-{subnet}",
                f"link set br-{subnet} up",
            )
        fabric_end, machine_end = self.plan.outside
        link = self.plan.prefix
        run("ip", "link", "add", link, "type", "veth", "peer", "outside", "netns", _id(self.fabric))
        self.fabric.ip(f"addr add {fabric_end}/30 dev outside", "link set outside up")
        run("ip", "addr", "add", f"{machine_end}/30", "dev", link)
        run("ip", "link", "set", link, "up")
        run("ip", "route", "add", self.plan.network, "via", fabric_end, "dev", link)
        self.client.create()
        self._plug(self.client, "control", self.plan.client_address)

    def attach(self, machine: Namespace, node: NodePlan, others: Iterable[NodePlan]) -> None:
        """Wire a machine of the cluster to the fabric, and route to the others' pods."""
        plan = self.plan
        self._plug(machine, node.subnet, plan.address(node))
        machine.ip(
            f"link add {TUNNEL} address {node.mac} mtu {POD_MTU} type vxlan id {VXLAN_ID}"
            f" dstport {VXLAN_PORT} local {plan.address(node)} dev eth0 nolearning",
            f"addr add {node.tunnel}/32 dev {TUNNEL}",
            f"link set {TUNNEL} up",
        )
        for other in others:
            if other == node:
                continue
            remote = plan.address(other)
            run(
                *machine.wires(),
                *["bridge", "fdb", "append", other.mac, "dev", TUNNEL, "dst", remote],
            )
            machine.ip(f"neigh add {other.tunnel} lladdr {other.mac} dev {TUNNEL} nud permanent")
            if other == CONTROL:
                machine.ip(f"route add {other.tunnel}/32 dev {TUNNEL}")
            else:
                self._route(machine, node, other, tunnelled=False)

    def route_pods(self, nodes: Collection[Node], *, tunnelled: bool) -> None:
        """Send pods' traffic by VXLAN between any two nodes, or only between subnets."""
        for one in nodes:
            for other in nodes:
                if one is not other:
                    self._route(one, one.node, other.node, tunnelled=tunnelled)

    def _route(
        self, machine: Namespace, node: NodePlan, other: NodePlan, *, tunnelled: bool
    ) -> None:
        if same_subnet(node, other) and not tunnelled:
            way = f"via {self.plan.address(other)} dev eth0"
        else:
            way = f"via {other.tunnel} dev {TUNNEL} onlink"
        machine.ip(f"route replace {other.pods} {way}")

    def prepare_pods(self, machine: Namespace, node: NodePlan) -> None:
        """Let the machine be the router of its pods."""
        machine.sysctl(**{"ipv4.ip_forward": 1})
        machine.nft(f"""
table ip outgoing {{
    chain postrouting {{
        type nat hook postrouting priority srcnat
        ip saddr {node.pods} ip daddr != {POD_NETWORK} masquerade
    }}
}}
""")

    def _plug(self, namespace: Namespace, subnet: str, address: str) -> None:
        port = f"v-{namespace.name}"
        self.fabric.ip(
            f"link add {port} type veth peer eth0 netns {_id(namespace)}",
            f"link set {port} gso_max_segs 1 master br-{subnet} up",
        )
        namespace.ip(
            f"addr add {address}/24 dev eth0",
            # Packets leave in the sizes of a real wire, so that a rule on sizes means something.
            "link set eth0 gso_max_segs 1 up",
            f"route add default via {self.plan.router(subnet)}",
        )


def links(plan: Plan) -> list[str]:
    """The cluster's links among those of the machine itself."""
    listed = subprocess.run(
        ["ip", "-brief", "link"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    names = [line.split()[0].partition("@")[0] for line in listed.splitlines()]
    return [name for name in names if name == plan.prefix]


def _id(namespace: Namespace) -> str:
    return namespace.namespace
