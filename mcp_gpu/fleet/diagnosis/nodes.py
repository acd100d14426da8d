"""Nodes as a network sees them: addresses, place, kernel, who runs the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mcp_gpu.fleet.discovery.nodes import read_node

__all__ = ["NodeFacts", "aws", "instance", "read_node_facts", "region"]

ZONE_LABEL = "topology.kubernetes.io/zone"
REGION_LABEL = "topology.kubernetes.io/region"

GROUP_LABELS = (
    "eks.amazonaws.com/nodegroup",
    "alpha.eksctl.io/nodegroup-name",
    "karpenter.sh/nodepool",
    "cloud.google.com/gke-nodepool",
    "kubernetes.azure.com/agentpool",
    "kops.k8s.io/instancegroup",
    "node.cluster.x-k8s.io/pool",
)
"""How providers name what nodes were made alike by."""

SUBNET_LABEL = "kubernetes.azure.com/network-subnet"
"""The one provider's label that names a node's subnet."""

CALICO_ADDRESS = "projectcalico.org/IPv4Address"
"""Annotation: the address and prefix by which Calico decides what is in one subnet."""

FLANNEL_BACKEND = "flannel.alpha.coreos.com/backend-type"


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What is kept of a node. Empty means not known."""

    name: str
    addresses: tuple[str, ...] = ()
    """InternalIPs of both families."""
    pod_cidrs: tuple[str, ...] = ()
    kernel: str = ""
    provider_id: str = ""
    zone: str = ""
    region: str = ""
    group: str = ""
    subnet: str = ""
    """As the provider names it."""
    calico_address: str = ""
    """With its prefix, such as `10.0.1.5/24`."""
    flannel: str = ""
    """Backend, such as `vxlan` or `host-gw`."""
    trouble: str = ""
    """Why the node is not ready, in words."""


def read_node_facts(document: Mapping[str, Any]) -> NodeFacts:
    """Reduce a node to what a diagnosis of its network needs."""
    metadata, spec = document["metadata"], document.get("spec") or {}
    status = document.get("status") or {}
    labels, notes = metadata.get("labels") or {}, metadata.get("annotations") or {}
    own_cidr = [spec["podCIDR"]] if spec.get("podCIDR") else []
    return NodeFacts(
        name=metadata["name"],
        addresses=tuple(
            each["address"]
            for each in status.get("addresses") or ()
            if each.get("type") == "InternalIP"
        ),
        pod_cidrs=tuple(spec.get("podCIDRs") or own_cidr),
        kernel=(status.get("nodeInfo") or {}).get("kernelVersion", ""),
        provider_id=spec.get("providerID", ""),
        zone=labels.get(ZONE_LABEL, ""),
        region=labels.get(REGION_LABEL, ""),
        group=next((labels[label] for label in GROUP_LABELS if labels.get(label)), ""),
        subnet=labels.get(SUBNET_LABEL, ""),
        calico_address=notes.get(CALICO_ADDRESS, ""),
        flannel=notes.get(FLANNEL_BACKEND, ""),
        trouble=read_node(document).trouble,
    )


def instance(node: NodeFacts | None) -> str:
    """The EC2 instance's id, from `aws:///eu-west-1a/i-0abc`; empty where it is none."""
    if node is None or not node.provider_id.startswith("aws:"):
        return ""
    last = node.provider_id.rpartition("/")[2]
    return last if last.startswith("i-") else ""


def aws(command: str, node: NodeFacts | None) -> str:
    """The command of the `aws` program, for the node's region where that is known."""
    where = region(node) if node is not None else ""
    return f"aws ec2 {command}" + (f" --region {where}" if where else "")


def region(node: NodeFacts) -> str:
    """Where the node's provider runs it: as its label says, else from a zone such as eu-west-1a."""
    if node.region:
        return node.region
    zone = node.zone or (node.provider_id.split("/")[3:4] or [""])[0]
    return zone[:-1] if zone[-1:].isalpha() and zone[-2:-1].isdigit() else ""
