"""What a service mesh and a network plugin's own policies say of the agents' port."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mcp_gpu.fleet.diagnosis.pods import EXCLUDED_PORTS, PodFacts
from mcp_gpu.fleet.diagnosis.policies import Selector, read_selector

__all__ = [
    "OtherPolicy",
    "PeerAuthentication",
    "excluded",
    "read_authentication",
    "read_calico_policy",
    "read_cilium_policy",
    "strict",
]

ROOT_NAMESPACE = "istio-system"
"""Where a PeerAuthentication without a selector holds for the whole mesh."""

PREFIXES = ("k8s:", "any:")
"""What Cilium may put before a label's name, with no other meaning for a pod's own labels."""


@dataclass(frozen=True, slots=True)
class PeerAuthentication:
    """Whether Istio's proxies take what comes without its TLS."""

    namespace: str
    name: str
    mode: str
    """STRICT, PERMISSIVE, DISABLE, or empty for the next wider one's."""
    pods: Selector | None = None
    ports: Mapping[int, str] = field(default_factory=dict)
    """Modes of single ports."""

    @property
    def breadth(self) -> int:
        """How much it is about: 0 for single pods, 1 for its namespace, 2 for the mesh."""
        if self.pods is not None:
            return 0
        return 2 if self.namespace == ROOT_NAMESPACE else 1

    def covers(self, pod: PodFacts) -> bool:
        """Whether it is about the pod."""
        if self.pods is not None and not self.pods.matches(pod.labels):
            return False
        return self.namespace == pod.namespace or self.breadth == 2


@dataclass(frozen=True, slots=True)
class OtherPolicy:
    """A policy of a network plugin's own, which is not evaluated."""

    kind: str
    namespace: str
    name: str
    pods: Selector | None = None
    """What it selects; None where it says so in a language of its own."""

    @property
    def title(self) -> str:
        """As one would look for it."""
        where = f" -n {self.namespace}" if self.namespace else ""
        return f"{self.kind} {self.name}{where}"

    def may_select(self, pod: PodFacts) -> bool:
        """Whether it could be about the pod."""
        if self.namespace and self.namespace != pod.namespace:
            return False
        return self.pods is None or self.pods.matches(pod.labels)


def read_authentication(document: Mapping[str, Any]) -> PeerAuthentication:
    """A PeerAuthentication of security.istio.io."""
    metadata, spec = document["metadata"], document.get("spec") or {}
    selector = spec.get("selector")
    return PeerAuthentication(
        metadata.get("namespace", ""),
        metadata["name"],
        (spec.get("mtls") or {}).get("mode") or "",
        read_selector(selector) if selector else None,
        {
            int(port): each.get("mode") or ""
            for port, each in (spec.get("portLevelMtls") or {}).items()
        },
    )


def read_cilium_policy(document: Mapping[str, Any]) -> OtherPolicy | None:
    """A policy of Cilium's, if it selects pods by their labels."""
    metadata = document["metadata"]
    spec: Mapping[str, Any] = document.get("spec") or next(iter(document.get("specs") or ()), {})
    selector = spec.get("endpointSelector")
    if selector is None:
        return None
    return OtherPolicy(
        document.get("kind") or "CiliumNetworkPolicy",
        metadata.get("namespace", ""),
        metadata["name"],
        _plain(selector),
    )


def read_calico_policy(document: Mapping[str, Any]) -> OtherPolicy:
    """A policy of Calico's."""
    metadata = document["metadata"]
    kind = "GlobalNetworkPolicy" if not metadata.get("namespace") else "NetworkPolicy"
    return OtherPolicy(
        f"{kind.lower()}.crd.projectcalico.org", metadata.get("namespace", ""), metadata["name"]
    )


def strict(authentications: Iterable[PeerAuthentication], pod: PodFacts, port: int) -> str:
    """The name of what makes the pod's proxy refuse other than the mesh's TLS; empty for nothing.

    The narrowest that says something counts: the pod's, its namespace's, the mesh's.
    """
    here = [each for each in authentications if each.covers(pod)]
    for each in sorted(here, key=lambda each: each.breadth):
        mode = each.ports.get(port) or each.mode
        if mode not in ("", "UNSET"):
            return f"{each.namespace}/{each.name}" if mode == "STRICT" else ""
    return ""


def excluded(pod: PodFacts, port: int) -> bool:
    """Whether the pod's annotations keep the port out of its proxy."""
    listed = ",".join(pod.annotations.get(name, "") for name in EXCLUDED_PORTS.values())
    return str(port) in (part.strip() for part in listed.split(","))


def _plain(selector: Mapping[str, Any]) -> Selector:
    """Cilium's selector without the prefixes of its labels."""

    def bare(name: str) -> str:
        return next((name.removeprefix(p) for p in PREFIXES if name.startswith(p)), name)

    labels = selector.get("matchLabels") or {}
    expressions = selector.get("matchExpressions") or ()
    return read_selector(
        {
            "matchLabels": {bare(key): value for key, value in labels.items()},
            "matchExpressions": [each | {"key": bare(each["key"])} for each in expressions],
        }
    )
