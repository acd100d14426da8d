"""Surveys and evidence as a cluster of some kind would give them, for tests of the diagnosis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mcp_gpu.fleet.connectivity.model import NodeSurvey, Outcome, PathResult, Place, Survey
from mcp_gpu.fleet.diagnosis.cni import Felix, IpPool, Plugin
from mcp_gpu.fleet.diagnosis.evidence import Evidence
from mcp_gpu.fleet.diagnosis.nodes import NodeFacts
from mcp_gpu.fleet.diagnosis.pods import PodFacts
from mcp_gpu.fleet.diagnosis.policies import NetworkPolicy, read_policy
from transports.base import Target

__all__ = ["AGENT", "EVERYTHING", "GATEWAY", "Fleet", "policy"]

AGENT = {"app.kubernetes.io/name": "mcp-gpu", "app.kubernetes.io/component": "agent"}
GATEWAY = {"app.kubernetes.io/name": "mcp-gpu", "app.kubernetes.io/component": "gateway"}

EVERYTHING = frozenset(
    {
        "nodes",
        "pods",
        "namespaces",
        "networkpolicies.networking.k8s.io",
        "ippools.crd.projectcalico.org",
        "felixconfigurations.crd.projectcalico.org",
        "daemonsets.apps",
    }
)
"""What has been read where the role grants all of it."""

MESSAGES: Mapping[str, str] = {
    "refused": "connection refused",
    "connect_timeout": "no connection within 2 s",
    "not_running": "the relay found no agent",
    "kubelet_unreachable": "error dialing backend: dial tcp 10.0.1.2:10250: i/o timeout",
    "rbac": "grant get and create on pods/exec",
    "unauthorized": "HTTP 401: this token is not accepted",
}


HERE = Place("n0", "gateway", "gpu")


@dataclass(frozen=True)
class Fleet:
    """Agents on nodes of so many subnets; the gateway is on the first node.

    n0, n1, ... are spread over the subnets in turn, but for the first two, which share one.
    """

    count: int = 6
    subnets: int = 2
    http: Mapping[str, Outcome] = field(default_factory=dict)
    """By node; else `ok`."""
    portforward: Mapping[str, Outcome] = field(default_factory=dict)
    exec: Mapping[str, Outcome] = field(default_factory=dict)
    vias: Sequence[str] = ("http", "portforward", "exec")
    place: Place = HERE
    provider: str = "aws:///eu-west-1a/i-0{}"
    annotated: bool = True
    """Calico has written each node's address and prefix down."""
    nodes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By node: more of its facts."""
    pods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By node: more of its agent's pod's facts."""
    gateway: Mapping[str, Any] = field(default_factory=dict)
    """More of its pod's facts."""
    targets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pools: tuple[IpPool, ...] = ()
    felix: Felix | None = None
    plugins: tuple[Plugin, ...] = ()
    policies: tuple[NetworkPolicy, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)
    """More of the evidence."""
    absent: tuple[tuple[str, str], ...] = ()

    def but(self, **changes: Any) -> Fleet:
        """The same with something else."""
        return replace(self, **changes)

    @property
    def names(self) -> list[str]:
        return [f"n{number}" for number in range(self.count)]

    def subnet(self, number: int) -> int:
        return 0 if number < 2 else number % self.subnets

    def mates(self) -> list[str]:
        """Other nodes of the gateway's subnet."""
        return [f"n{n}" for n in range(1, self.count) if self.subnet(n) == 0]

    def far(self) -> list[str]:
        """Nodes of other subnets."""
        return [f"n{n}" for n in range(self.count) if self.subnet(n) != 0]

    def survey(self) -> Survey:
        nodes = tuple(
            NodeSurvey(name, self._target(number, name), self._paths(name))
            for number, name in enumerate(self.names)
        )
        return Survey(self.place, nodes, self.absent)

    def evidence(self) -> Evidence:
        facts = {name: self._node(number, name) for number, name in enumerate(self.names)}
        pods = {
            ("gpu", f"agent-{name}"): self._pod(number, name)
            for number, name in enumerate(self.names)
        }
        own = PodFacts(
            "gpu", "gateway", "n0", GATEWAY, {}, ("10.244.0.9",), "10.0.0.1", account="gateway"
        )
        pods["gpu", "gateway"] = replace(own, **self.gateway)
        whole = Evidence(
            nodes=facts,
            pods=pods,
            namespaces={"gpu": {"team": "ml"}},
            policies=self.policies,
            pools=self.pools,
            felix=self.felix,
            plugins=self.plugins,
            read=EVERYTHING,
        )
        return replace(whole, **self.more)

    def _target(self, number: int, name: str) -> Target:
        fields: dict[str, Any] = {
            "node": name,
            "namespace": "gpu",
            "pod": f"agent-{name}",
            "uid": f"uid-{name}",
            "addresses": (self._address(number),),
        }
        return Target(**fields | dict(self.targets.get(name, {})))

    def _paths(self, name: str) -> tuple[PathResult, ...]:
        return tuple(
            PathResult(via, outcome, MESSAGES.get(outcome, ""), 0.01)
            for via in self.vias
            for outcome in [getattr(self, via, {}).get(name, "ok")]
        )

    def _address(self, number: int) -> str:
        return f"10.244.{number // 250}.{number % 250 + 1}"

    def _node(self, number: int, name: str) -> NodeFacts:
        address = f"10.0.{self.subnet(number)}.{number % 250 + 1}"
        facts = NodeFacts(
            name,
            (address,),
            kernel="6.1.0",
            provider_id=self.provider.format(number),
            zone=f"eu-west-1{'abc'[self.subnet(number) % 3]}",
            calico_address=f"{address}/24" if self.annotated else "",
        )
        return replace(facts, **self.nodes.get(name, {}))

    def _pod(self, number: int, name: str) -> PodFacts:
        pod = PodFacts(
            "gpu",
            f"agent-{name}",
            name,
            AGENT,
            {},
            (self._address(number),),
            ports={"mcp": 8080},
            owner="daemonset/agents",
        )
        return replace(pod, **self.pods.get(name, {}))


def policy(name: str = "deny", namespace: str = "gpu", **spec: Any) -> NetworkPolicy:
    """A NetworkPolicy; one that selects every pod and allows nothing in unless told otherwise."""
    metadata = {"name": name, "namespace": namespace}
    return read_policy({"metadata": metadata, "spec": {"podSelector": {}} | spec})
