"""The pods at both ends of a path, as a network and a mesh see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mcp_gpu.fleet.discovery.pods import read_pod

__all__ = ["EXCLUDED_PORTS", "POD_ENI", "REDIRECTION", "SIDECARS", "PodFacts", "read_pod_facts"]

POD_ENI = "vpc.amazonaws.com/pod-eni"
"""Annotation of a pod with a network interface, and security groups, of its own."""

EXCLUDED_PORTS = {
    "Istio": "traffic.sidecar.istio.io/excludeInboundPorts",
    "Linkerd": "config.linkerd.io/skip-inbound-ports",
}
"""Annotations by mesh: ports that its sidecar leaves alone."""

REDIRECTION = "ambient.istio.io/redirection"
"""Annotation of a pod that a mesh without sidecars has taken in."""

KEPT_ANNOTATIONS = frozenset({POD_ENI, REDIRECTION, *EXCLUDED_PORTS.values()})

SIDECARS = {
    "istio-proxy": "Istio",
    "linkerd-proxy": "Linkerd",
    "consul-dataplane": "Consul",
    "kuma-sidecar": "Kuma",
}
"""Containers of meshes."""


@dataclass(frozen=True, slots=True)
class PodFacts:
    """What is kept of a pod."""

    namespace: str
    name: str
    node: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Those that a diagnosis looks at."""
    addresses: tuple[str, ...] = ()
    host_address: str = ""
    """The node's."""
    host_network: bool = False
    ports: Mapping[str, int] = field(default_factory=dict)
    """TCP ports that have a name."""
    mesh: str = ""
    """Whose proxy stands before the pod; empty for none."""
    account: str = ""
    """Its ServiceAccount."""
    owner: str = ""
    """What made it, as `daemonset/NAME`."""
    restarted: bool = False
    """A container of its has ended before, and so has an earlier log."""
    trouble: str = ""
    """What is out of order, in words."""


def read_pod_facts(document: Mapping[str, Any]) -> PodFacts:
    """Reduce a pod to what a diagnosis needs."""
    metadata, spec = document["metadata"], document.get("spec") or {}
    status = document.get("status") or {}
    notes = metadata.get("annotations") or {}
    # A sidecar may be an init container that goes on running.
    containers = [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]
    owners = metadata.get("ownerReferences") or ()
    addresses = [each["ip"] for each in status.get("podIPs") or () if each.get("ip")]
    if not addresses and status.get("podIP"):
        addresses = [status["podIP"]]
    meshes = [SIDECARS[each["name"]] for each in containers if each.get("name") in SIDECARS]
    if notes.get(REDIRECTION) == "enabled":
        meshes.append("Istio")
    return PodFacts(
        namespace=metadata.get("namespace", ""),
        name=metadata["name"],
        node=spec.get("nodeName", ""),
        labels=dict(metadata.get("labels") or {}),
        annotations={name: text for name, text in notes.items() if name in KEPT_ANNOTATIONS},
        addresses=tuple(addresses),
        host_address=status.get("hostIP", ""),
        host_network=bool(spec.get("hostNetwork")),
        ports={
            port["name"]: port["containerPort"]
            for container in containers
            for port in container.get("ports") or ()
            if port.get("name") and port.get("protocol", "TCP") == "TCP"
        },
        mesh=meshes[0] if meshes else "",
        account=spec.get("serviceAccountName", ""),
        owner=f"{owners[0]['kind'].lower()}/{owners[0]['name']}" if owners else "",
        restarted=any(each.get("restartCount") for each in status.get("containerStatuses") or ()),
        trouble=read_pod(document).trouble,
    )
