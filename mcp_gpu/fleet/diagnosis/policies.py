"""Kubernetes' own NetworkPolicies: do they let the gateway reach an agent's port?

As the API defines them: a pod that no policy selects takes everything; one that some policy
selects takes what any of them allows. What is not known, such as the labels of a pod that may
not be read, makes the answer None and never a guess.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "NAMESPACE_NAME",
    "Decision",
    "NetworkPolicy",
    "Party",
    "Selector",
    "decide",
    "read_policy",
    "read_selector",
]

NAMESPACE_NAME = "kubernetes.io/metadata.name"
"""Label that the API server gives every namespace."""

Direction = Literal["ingress", "egress"]


@dataclass(frozen=True, slots=True)
class Expression:
    """One of `matchExpressions`."""

    key: str
    operator: str
    values: frozenset[str]

    def matches(self, labels: Mapping[str, str]) -> bool:
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels
        return False


@dataclass(frozen=True, slots=True)
class Selector:
    """A label selector; one that asks for nothing matches everything."""

    labels: Mapping[str, str] = field(default_factory=dict)
    expressions: tuple[Expression, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether such labels are selected."""
        return all(labels.get(key) == value for key, value in self.labels.items()) and all(
            expression.matches(labels) for expression in self.expressions
        )

    @property
    def keys(self) -> frozenset[str]:
        """Labels that it asks for."""
        return frozenset(self.labels) | {each.key for each in self.expressions}


@dataclass(frozen=True, slots=True)
class Party:
    """One end of a connection."""

    namespace: str
    labels: Mapping[str, str] | None = None
    """None: not known."""
    namespace_labels: Mapping[str, str] | None = None
    """None: not known, except for its name's."""
    addresses: tuple[str, ...] = ()
    ports: Mapping[str, int] | None = None
    """By name. None: not known."""
    node: str = ""
    host_network: bool = False

    def selected(self, pods: Selector) -> bool | None:
        """Whether the selector picks the pod; None: not known."""
        if not pods.keys:
            return True
        return None if self.labels is None else pods.matches(self.labels)

    def within(self, namespaces: Selector) -> bool | None:
        """Whether the selector picks its namespace; None: not known."""
        known = {NAMESPACE_NAME: self.namespace}
        if self.namespace_labels is not None:
            return namespaces.matches(known | dict(self.namespace_labels))
        return namespaces.matches(known) if namespaces.keys <= known.keys() else None


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom a rule lets in or out. Pods and namespaces are asked for together."""

    pods: Selector | None = None
    namespaces: Selector | None = None
    block: str = ""
    excepted: tuple[str, ...] = ()

    def covers(self, party: Party, own_namespace: str) -> bool | None:
        """Whether the party is meant; None: not known."""
        if self.block:
            return self._holds(party)
        if party.host_network or (self.pods is None and self.namespaces is None):
            return False  # its packets are the node's: only a block can mean it
        if self.namespaces is None:
            inside: bool | None = party.namespace == own_namespace
        else:
            inside = party.within(self.namespaces)
        return _both(inside, party.selected(self.pods or Selector()))

    def _holds(self, party: Party) -> bool | None:
        if not party.addresses:
            return None
        return any(
            _inside(address, self.block)
            and not any(_inside(address, part) for part in self.excepted)
            for address in party.addresses
        )


@dataclass(frozen=True, slots=True)
class Port:
    """Ports that a rule is about. `number` None: all of them."""

    protocol: str = "TCP"
    number: int | str | None = None
    """A string is the name of a port of the pod that is called."""
    end: int | None = None

    def covers(self, port: int, named: Mapping[str, int] | None) -> bool | None:
        """Whether it is meant, by a number or a name; None: not known."""
        if self.protocol != "TCP":
            return False
        if self.number is None:
            return True
        if isinstance(self.number, str):
            return None if named is None else named.get(self.number) == port
        return self.number <= port <= (self.end or self.number)


@dataclass(frozen=True, slots=True)
class Rule:
    """What one rule allows: each peer on each port. Empty means all."""

    peers: tuple[Peer, ...] = ()
    ports: tuple[Port, ...] = ()

    def allows(
        self, other: Party, own_namespace: str, port: int, named: Mapping[str, int] | None
    ) -> bool | None:
        """Whether it lets the other end's connection to that port through; None: not known."""
        return _both(
            not self.ports or _either(each.covers(port, named) for each in self.ports),
            not self.peers or _either(each.covers(other, own_namespace) for each in self.peers),
        )


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """One policy. `ingress` or `egress` None: it says nothing of that direction."""

    namespace: str
    name: str
    pods: Selector
    ingress: tuple[Rule, ...] | None
    egress: tuple[Rule, ...] | None


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a connection is allowed, and who forbids it."""

    allowed: bool | None
    """None: not known."""
    direction: Direction = "ingress"
    """Where it ends, if it does."""
    policies: tuple[str, ...] = ()
    """Names of the policies that select the pod there and do not allow the connection."""


def read_policy(document: Mapping[str, Any]) -> NetworkPolicy:
    """A NetworkPolicy of networking.k8s.io/v1."""
    metadata, spec = document["metadata"], document.get("spec") or {}
    # Without types it is about ingress, and about egress if it has such rules.
    types = spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]

    def rules(kind: str, key: str, peers: str) -> tuple[Rule, ...] | None:
        if kind not in types:
            return None
        return tuple(_rule(each or {}, peers) for each in spec.get(key) or ())

    return NetworkPolicy(
        namespace=metadata.get("namespace", ""),
        name=metadata["name"],
        pods=read_selector(spec.get("podSelector") or {}),
        ingress=rules("Ingress", "ingress", "from"),
        egress=rules("Egress", "egress", "to"),
    )


def read_selector(document: Mapping[str, Any]) -> Selector:
    """A label selector as the API has it."""
    return Selector(
        dict(document.get("matchLabels") or {}),
        tuple(
            Expression(each["key"], each["operator"], frozenset(each.get("values") or ()))
            for each in document.get("matchExpressions") or ()
        ),
    )


def decide(
    policies: Iterable[NetworkPolicy], source: Party, destination: Party, port: int
) -> Decision:
    """Whether the source may open a TCP connection to the destination's port."""
    policies = tuple(policies)
    out = _end("egress", policies, source, destination, port, destination.ports)
    into = _end("ingress", policies, destination, source, port, destination.ports)
    if source.host_network and source.node and source.node == destination.node:
        into = Decision(True)  # a node always reaches its own pods
    for end in (into, out):
        if end.allowed is False:
            return end
    return Decision(
        _both(into.allowed, out.allowed), "ingress" if into.allowed is None else "egress"
    )


def _end(
    direction: Direction,
    policies: tuple[NetworkPolicy, ...],
    own: Party,
    other: Party,
    port: int,
    named: Mapping[str, int] | None,
) -> Decision:
    """What the policies of one end say of the other."""
    if own.host_network:
        return Decision(True, direction)  # policies are about pods' own networks
    sure: list[tuple[str, bool | None]] = []
    perhaps: list[bool | None] = []
    for policy in policies:
        rules = policy.ingress if direction == "ingress" else policy.egress
        selected = own.selected(policy.pods)
        if policy.namespace != own.namespace or rules is None or selected is False:
            continue
        verdict = _either(rule.allows(other, policy.namespace, port, named) for rule in rules)
        if selected:
            sure.append((policy.name, verdict))
        else:
            perhaps.append(verdict)
    if not sure:
        # If none of the doubtful ones selects the pod, it takes everything.
        return Decision(True if all(perhaps) else None, direction)
    allowed = _either(verdict for _, verdict in sure)
    if allowed is False and any(verdict is not False for verdict in perhaps):
        allowed = None
    return Decision(allowed, direction, tuple(name for name, _ in sure) if allowed is False else ())


def _inside(address: str, block: str) -> bool:
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(block, strict=False)
    except ValueError:
        return False


def _rule(document: Mapping[str, Any], peers: str) -> Rule:
    return Rule(
        tuple(_peer(each) for each in document.get(peers) or ()),
        tuple(
            Port(each.get("protocol") or "TCP", each.get("port"), each.get("endPort"))
            for each in document.get("ports") or ()
        ),
    )


def _peer(document: Mapping[str, Any]) -> Peer:
    block = document.get("ipBlock")
    if block:
        return Peer(block=block["cidr"], excepted=tuple(block.get("except") or ()))
    pods, namespaces = document.get("podSelector"), document.get("namespaceSelector")
    return Peer(
        None if pods is None else read_selector(pods),
        None if namespaces is None else read_selector(namespaces),
    )


def _both(one: bool | None, other: bool | None) -> bool | None:
    if one is False or other is False:
        return False
    return True if one and other else None


def _either(verdicts: Iterable[bool | None]) -> bool | None:
    listed = list(verdicts)
    if any(listed):
        return True
    return None if None in listed else False
