"""What carries pods' packets between nodes: the network plugin and how it is set."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "MTU_KEYS",
    "ROUTED",
    "Felix",
    "IpPool",
    "Overlay",
    "Plugin",
    "overlay_of",
    "read_felix",
    "read_plugin",
    "read_pool",
]

PLUGINS = {
    "calico-node": "calico",
    "canal": "canal",
    "rke2-canal": "canal",
    "cilium": "cilium",
    "anetd": "cilium",
    "kube-flannel": "flannel",
    "kube-flannel-ds": "flannel",
    "aws-node": "vpc-cni",
    "weave-net": "weave",
    "kindnet": "kindnet",
    "kube-router": "kube-router",
    "antrea-agent": "antrea",
    "ovnkube-node": "ovn",
    "azure-cns": "azure",
    "netd": "gke",
}
"""DaemonSets by which network plugins are known."""

EXTERNAL_SNAT = "AWS_VPC_K8S_CNI_EXTERNALSNAT"
ENABLE_POD_ENI = "ENABLE_POD_ENI"
FIRST_VXLAN = "CALICO_IPV4POOL_VXLAN"
FIRST_IPIP = "CALICO_IPV4POOL_IPIP"
SOURCE_CHECK = "FELIX_AWSSRCDSTCHECK"

SETTINGS = frozenset({EXTERNAL_SNAT, ENABLE_POD_ENI, FIRST_VXLAN, FIRST_IPIP, SOURCE_CHECK})
"""Environment variables of plugins that say how packets go. No other is kept."""

VXLAN_PORT = 4789
"""Calico's, unless FelixConfiguration says otherwise. Linux's own, and flannel's and Cilium's with
it, is 8472."""


MTU_KEYS = {"VXLAN": "vxlanMTU", "IPIP": "ipipMTU", "WireGuard": "wireguardMTU"}
"""What FelixConfiguration calls the MTU of each kind of wrapping."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """A DaemonSet that is a network plugin."""

    kind: str
    """One of the values of `PLUGINS`."""
    name: str
    namespace: str
    settings: Mapping[str, str] = field(default_factory=dict)
    selector: str = ""
    """Labels of its pods, as kubectl takes them."""


@dataclass(frozen=True, slots=True)
class IpPool:
    """Addresses that Calico gives to pods, and how it carries their packets."""

    name: str
    cidr: str
    vxlan: str = "Never"
    ipip: str = "Never"

    @property
    def crosses(self) -> bool:
        """Whether packets between nodes of one subnet go as they are, and others do not."""
        return "CrossSubnet" in (self.vxlan, self.ipip)

    @property
    def unwrapped(self) -> bool:
        """Whether all packets go as they are."""
        return self.vxlan == self.ipip == "Never"

    @property
    def says(self) -> str:
        """The modes, as the object has them."""
        return f"IPPool {self.name} ({self.cidr}): vxlanMode {self.vxlan}, ipipMode {self.ipip}"

    def holds(self, address: str) -> bool:
        """Whether the address is one of its."""
        try:
            return ipaddress.ip_address(address) in ipaddress.ip_network(self.cidr, strict=False)
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class Felix:
    """Calico's agent on the nodes, as FelixConfiguration `default` sets it."""

    vxlan_port: int = VXLAN_PORT
    mtus: Mapping[str, int] = field(default_factory=dict)
    """By `MTU_KEYS`; those that are missing are detected."""
    source_check: str = "DoNothing"
    """`awsSrcDstCheck`."""
    wireguard: bool = False


@dataclass(frozen=True, slots=True)
class Overlay:
    """How pods' packets are wrapped between nodes."""

    kind: str
    """Such as `VXLAN`."""
    carrier: str
    """What firewalls have to let through, such as `UDP 4789`."""
    across_subnets_only: bool
    said_by: str
    """The evidence."""
    assumed: bool = False
    """It is what the plugin does where nobody has set it otherwise."""

    @property
    def udp_port(self) -> str:
        """The number, empty where it is not carried by UDP."""
        return self.carrier.removeprefix("UDP ") if self.carrier.startswith("UDP ") else ""


BY_PLUGIN = {
    "canal": ("VXLAN", "UDP 8472", False),
    "flannel": ("VXLAN", "UDP 8472", False),
    "cilium": ("VXLAN", "UDP 8472", False),
    "antrea": ("Geneve", "UDP 6081", False),
    "ovn": ("Geneve", "UDP 6081", False),
    "weave": ("VXLAN", "UDP 6784", False),
    "kube-router": ("IPIP", "IP protocol 4", True),
}
"""What plugins do where nothing else is set. Those that are missing route without wrapping."""


ROUTED = frozenset({"vpc-cni", "azure", "gke"})
"""Plugins by which the cloud itself routes pods' addresses, whatever else enforces policies."""


def read_plugin(document: Mapping[str, Any]) -> Plugin | None:
    """A DaemonSet, if it is a network plugin that is known."""
    metadata, spec = document["metadata"], document.get("spec") or {}
    kind = PLUGINS.get(metadata["name"])
    if kind is None:
        return None
    pod = (spec.get("template") or {}).get("spec") or {}
    settings = {
        each["name"]: str(each["value"])
        for container in pod.get("containers") or ()
        for each in container.get("env") or ()
        if each.get("name") in SETTINGS and each.get("value") is not None
    }
    labels = (spec.get("selector") or {}).get("matchLabels") or {}
    selector = ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
    return Plugin(kind, metadata["name"], metadata.get("namespace", ""), settings, selector)


def read_pool(document: Mapping[str, Any]) -> IpPool | None:
    """An IPPool that is in use."""
    spec = document.get("spec") or {}
    if spec.get("disabled") or not spec.get("cidr"):
        return None
    name = document["metadata"]["name"]
    modes = (spec.get("vxlanMode") or "Never", spec.get("ipipMode") or "Never")
    return IpPool(name, spec["cidr"], *modes)


def read_felix(document: Mapping[str, Any]) -> Felix | None:
    """The FelixConfiguration that holds for all nodes."""
    if document["metadata"]["name"] != "default":
        return None
    spec = document.get("spec") or {}
    return Felix(
        vxlan_port=int(spec.get("vxlanPort") or VXLAN_PORT),
        mtus={key: int(spec[key]) for key in MTU_KEYS.values() if spec.get(key)},
        source_check=spec.get("awsSrcDstCheck") or "DoNothing",
        wireguard=bool(spec.get("wireguardEnabled")),
    )


def overlay_of(
    pools: Iterable[IpPool],
    felix: Felix | None,
    plugins: Iterable[Plugin],
    backend: str,
    *,
    calico: bool = False,
) -> Overlay | None:
    """How pods' packets are wrapped; None where nothing says that they are.

    Args:
        pools: those that agents' addresses come from.
        backend: flannel's, as its nodes say.
        calico: there are pools of some kind, and so nothing is as by default.
    """
    felix = felix or Felix()
    kinds = {plugin.kind: plugin for plugin in plugins}
    pools = tuple(pools)
    if felix.wireguard:
        said = "FelixConfiguration default: wireguardEnabled"
        return Overlay("WireGuard", "UDP 51820", False, said)
    for pool in pools:
        if pool.vxlan != "Never":
            across = pool.vxlan == "CrossSubnet"
            return Overlay("VXLAN", f"UDP {felix.vxlan_port}", across, pool.says)
        if pool.ipip != "Never":
            return Overlay("IPIP", "IP protocol 4", pool.ipip == "CrossSubnet", pool.says)
    if backend:
        carrier = {"vxlan": ("VXLAN", "UDP 8472"), "wireguard": ("WireGuard", "UDP 51820")}
        if backend not in carrier:
            return None
        return Overlay(*carrier[backend], False, f"flannel's backend is {backend}")
    if calico or pools or ROUTED & kinds.keys():
        return None
    for kind, wrapping in BY_PLUGIN.items():
        if kind in kinds:
            plugin = kinds[kind]
            where = f"{plugin.namespace}/{plugin.name}"
            said = f"DaemonSet {where}; {wrapping[0]} unless it is set otherwise"
            return Overlay(*wrapping, said, assumed=True)
    return None
