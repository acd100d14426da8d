"""A survey joined with the evidence: every agent, where it is from the gateway, how it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from mcp_gpu.fleet.connectivity.model import NodeSurvey, Outcome, PathResult, Survey
from mcp_gpu.fleet.diagnosis.cni import IpPool, Overlay, Plugin, overlay_of
from mcp_gpu.fleet.diagnosis.evidence import Evidence
from mcp_gpu.fleet.diagnosis.nodes import NodeFacts
from mcp_gpu.fleet.diagnosis.pods import PodFacts
from mcp_gpu.fleet.diagnosis.policies import Decision, Party, decide
from mcp_gpu.fleet.diagnosis.subnets import GUESS, network, subnets_of

__all__ = ["DROPPED", "HTTP", "PORT_FORWARD", "TLS", "Agent", "Case", "Relation", "Split", "names"]

Relation = Literal["same node", "same subnet", "other subnets", "elsewhere"]
"""Where an agent is, seen from the gateway. `elsewhere`: not known, or the gateway is outside."""

DROPPED: frozenset[Outcome] = frozenset({"connect_timeout", "no_route", "silent"})
"""Nothing comes back."""

TLS: frozenset[Outcome] = frozenset(
    {"tls", "tls_untrusted", "tls_name", "tls_expired", "tls_scheme"}
)
"""A handshake that does not come to its end, though something answers."""

PASSED: frozenset[Outcome] = TLS | {
    "ok",
    "large_lost",
    "refused",
    "reset",
    "unauthorized",
    "forbidden",
    "http_error",
}
"""Something came back: packets get there and back."""

REACHED: frozenset[Outcome] = frozenset(
    {"ok", "large_lost", "wrong_identity", "unauthorized", "forbidden"}
)
"""What an agent's own HTTP server says; anything else may come from anywhere."""

NO_KUBELET: frozenset[Outcome] = frozenset({"kubelet_unreachable", "silent"})
"""A stream to a node whose kubelet the API server dials in vain: it says so after 30 s, which
nobody waits for."""

UNPREPARED: frozenset[Outcome] = frozenset({"tls_scheme", "unauthorized"})
"""What agents say to a gateway that has not been given what their door wants."""

UNATTENDED: frozenset[Outcome] = frozenset({"silent", "refused", "not_tried"})
"""HTTP to an agent that hangs: the machine itself answers, if anybody has asked."""

HTTP = "http"
PORT_FORWARD = "portforward"


@dataclass(frozen=True, slots=True)
class Agent:
    """One agent."""

    survey: NodeSurvey
    relation: Relation
    node: NodeFacts | None
    pod: PodFacts | None
    paths: tuple[PathResult, ...] = ()
    """Those that were tried and count from here, best first."""
    streams_tell: bool = True
    """Whether a silent stream says something of the agent: not where they are silent to all."""
    unfinished: bool = False
    """Some path that counts from here was not tried."""
    pod_gone: bool = False
    """Pods are known, and its own is not among them."""

    @property
    def name(self) -> str:
        return self.survey.node

    @property
    def streams(self) -> tuple[PathResult, ...]:
        return tuple(path for path in self.paths if path.via != HTTP)

    @property
    def http(self) -> Outcome:
        return self.outcome(HTTP)

    @property
    def carried(self) -> bool:
        """Whether some path other than HTTP works: the agent is alive."""
        return any(path.outcome == "ok" for path in self.streams)

    @property
    def reached(self) -> bool:
        return any(path.outcome == "ok" for path in self.paths)

    @property
    def cut_short(self) -> bool:
        """Time was up before one of its paths had answered and all had been tried."""
        return self.unfinished and not self.reached

    @property
    def pathless(self) -> bool:
        """None of the transports has a way to it that could be expected to work from here."""
        return not self.paths and not self.unfinished

    @property
    def unreached(self) -> bool:
        """No path leads to it, which is certain."""
        return not self.reached and not self.cut_short

    @property
    def preferred(self) -> bool:
        """Whether it answers on the first of its paths."""
        return bool(self.paths) and self.paths[0].outcome == "ok"

    @property
    def sick(self) -> bool:
        """Kubernetes does not call its node ready."""
        return self.node is not None and bool(self.node.trouble)

    @property
    def down(self) -> bool:
        """The agent does not run, or has hung: paths that end in its pod find nobody."""
        if self.reached:
            return False
        if self.had("not_running"):
            return True
        hung = self.streams_tell and any(path.outcome == "silent" for path in self.streams)
        if not hung or self.sick or self.cut_short:
            return False
        # Where not even a connection comes about, it may as well be the machine's firewall.
        ailing = self.pod_gone or (self.pod is not None and bool(self.pod.trouble))
        return self.http in UNATTENDED or (ailing and self.http in DROPPED)

    @property
    def cut_off(self) -> bool:
        """Neither the pod network nor the kubelet leads to the node, and nothing calls it well."""
        if self.reached or self.down or self.http not in DROPPED | {"not_tried"}:
            return False
        no_kubelet = any(path.outcome in NO_KUBELET for path in self.streams)
        if self.node is None:
            return self.had("kubelet_unreachable") and self.http in DROPPED
        return self.sick and (no_kubelet or self.http in DROPPED)

    @property
    def lost(self) -> bool:
        """HTTP to it vanishes, and it is not the agent's or the machine's own doing."""
        return self.http in DROPPED and not self.down and not self.cut_off

    @property
    def passes(self) -> bool:
        """Packets get there and back over the pod network."""
        return self.http in PASSED

    def had(self, *outcomes: Outcome) -> bool:
        """Whether some path ended so."""
        return any(path.outcome in outcomes for path in self.paths)

    def outcome(self, via: str) -> Outcome:
        """How that path went; `not_tried` if it does not count here."""
        return next((path.outcome for path in self.paths if path.via == via), "not_tried")

    def message(self, *outcomes: Outcome) -> str:
        """What was said by the first path that ended so."""
        return next((path.message for path in self.paths if path.outcome in outcomes), "")

    @property
    def addresses(self) -> tuple[str, ...]:
        return self.survey.target.addresses


@dataclass(frozen=True, slots=True)
class Split:
    """A property of nodes that tells those who answer from those who do not."""

    name: str
    """Such as `node group`."""
    lost: tuple[str, ...]
    passing: tuple[str, ...]
    """Values of it."""
    firm: bool
    """Not just one node on a side."""

    @property
    def line(self) -> str:
        return f"{self.name} {', '.join(self.lost[:3])} is lost, {', '.join(self.passing[:3])} not"


KEYS: Mapping[str, Callable[[Agent, Case], str]] = {
    "node group": lambda agent, _: agent.node.group if agent.node else "",
    "zone": lambda agent, _: agent.node.zone if agent.node else "",
    "subnet": lambda agent, case: case.subnets.get(agent.survey.target.node, ""),
    "kernel": lambda agent, _: agent.node.kernel if agent.node else "",
}
"""What may divide a fleet."""


class Case:
    """All that is known, put so that a cause can be read off."""

    def __init__(self, survey: Survey, evidence: Evidence) -> None:
        self.survey = survey
        self.evidence = evidence
        place = survey.place
        self.pod = evidence.pods.get((place.namespace, place.pod))
        """The gateway's."""
        self.node_name = place.node or (self.pod.node if self.pod else "")
        self.node = evidence.nodes.get(self.node_name)
        self.kubernetes = any(each.target.pod for each in survey.nodes)
        self.outside = self.kubernetes and not self.node_name and not place.pod
        """The gateway is no pod of the cluster, as on a laptop."""
        self.subnets: Mapping[str, str]
        self.subnets_from: str
        self.subnets, self.subnets_from = subnets_of(survey, evidence, self.node_name)
        self.subnets_sure = self.subnets_from != GUESS
        """Whether they tell how packets go, and not only where nodes are likely to be."""
        over_http, forwarded = _over(survey, HTTP), _over(survey, PORT_FORWARD)
        self.http_expected = not self.outside or not over_http or bool(over_http & REACHED)
        self.forward_unprepared = self.outside and bool(forwarded) and forwarded <= UNPREPARED
        """All agents want over a port-forward what nobody has given; exec wants nothing."""
        counting = [self._counting(each) for each in survey.nodes]
        streams = [
            [p.outcome for p in each if p.via != HTTP and p.outcome != "not_tried"]
            for each in counting
        ]
        tried = [outcomes for outcomes in streams if outcomes]
        self.streams_silent = len(tried) > 1 and all(
            outcome in NO_KUBELET for outcomes in tried for outcome in outcomes
        )
        """To every one of several agents: the way there is at fault, not they."""
        self.agents = tuple(map(self._join, survey.nodes, counting))

    def _counting(self, survey: NodeSurvey) -> tuple[PathResult, ...]:
        """The paths that may be expected to work from here, best first."""
        paths = [path for path in survey.paths if self.http_expected or path.via != HTTP]
        if self.forward_unprepared:
            paths.sort(key=lambda path: path.via == PORT_FORWARD)
        return tuple(paths)

    def _join(self, survey: NodeSurvey, paths: tuple[PathResult, ...]) -> Agent:
        target = survey.target
        own = self.subnets.get(self.node_name)
        subnet = self.subnets.get(target.node)
        relation: Relation = "elsewhere"
        if self.node_name and target.node == self.node_name:
            relation = "same node"
        elif own and subnet:
            relation = "same subnet" if own == subnet else "other subnets"
        evidence = self.evidence
        pod = evidence.pods.get((target.namespace, target.pod))
        tried = tuple(path for path in paths if path.outcome != "not_tried")
        return Agent(
            survey,
            relation,
            evidence.nodes.get(target.node),
            pod,
            tried,
            streams_tell=not self.streams_silent,
            unfinished=len(tried) < len(paths),
            pod_gone=bool(target.pod) and pod is None and "pods" in evidence.read,
        )

    @cached_property
    def lost(self) -> tuple[Agent, ...]:
        return tuple(agent for agent in self.agents if agent.lost)

    @cached_property
    def remote(self) -> tuple[Agent, ...]:
        """On other nodes than the gateway's, as far as is known where that is."""
        return tuple(a for a in self.agents if self.node_name and a.relation != "same node")

    @cached_property
    def home_lost(self) -> bool:
        """HTTP fails on the gateway's own node, where no packet leaves the machine."""
        return any(agent.lost for agent in self.agents if agent.relation == "same node")

    def at(self, relation: Relation) -> tuple[Agent, ...]:
        return tuple(agent for agent in self.agents if agent.relation == relation)

    @cached_property
    def pools(self) -> tuple[IpPool, ...]:
        """Calico's pools that the agents' addresses come from."""
        addresses = [a for agent in self.agents for a in _addresses(agent)]
        return tuple(
            pool for pool in self.evidence.pools if any(pool.holds(each) for each in addresses)
        )

    @cached_property
    def overlay(self) -> Overlay | None:
        evidence = self.evidence
        backends = (node.flannel for node in evidence.nodes.values() if node.flannel)
        return overlay_of(
            self.pools,
            evidence.felix,
            evidence.plugins,
            next(backends, ""),
            calico=bool(evidence.pools),
        )

    def plugin(self, kind: str) -> Plugin | None:
        return next((each for each in self.evidence.plugins if each.kind == kind), None)

    @property
    def on_aws(self) -> bool:
        return self.node is not None and self.node.provider_id.startswith("aws:")

    @cached_property
    def decisions(self) -> Mapping[str, Decision]:
        """By agent: what the NetworkPolicies say of HTTP to it. Empty where they are not known."""
        if "networkpolicies.networking.k8s.io" not in self.evidence.read or self.outside:
            return {}
        source = self._party(self.pod, self.survey.place.namespace, self.node_name, ())
        return {
            agent.name: decide(
                self.evidence.policies, source, self._end(agent), agent.survey.target.port
            )
            for agent in self.agents
            if agent.survey.target.pod
        }

    def denied(self, agents: Iterable[Agent]) -> bool:
        """Whether a NetworkPolicy, enforced or not, forbids HTTP to one of them."""
        return any(
            a.name in self.decisions and self.decisions[a.name].allowed is False for a in agents
        )

    @property
    def policies_allow(self) -> bool:
        """Whether NetworkPolicies are known to let the gateway reach all who are lost."""
        decisions = self.decisions
        return bool(decisions) and all(
            agent.name in decisions and decisions[agent.name].allowed for agent in self.lost
        )

    def split(self, agents: Iterable[Agent], *keys: str) -> Split | None:
        """The first property, of those named, that divides lost from passing without remainder."""
        counted = [agent for agent in agents if agent.lost or agent.passes]
        for key in keys:
            sides: dict[str, set[bool]] = {}
            for agent in counted:
                sides.setdefault(KEYS[key](agent, self), set()).add(agent.lost)
            lost = tuple(sorted(value for value, side in sides.items() if side == {True}))
            passing = tuple(sorted(value for value, side in sides.items() if side == {False}))
            if "" in sides or not lost or not passing or len(lost + passing) < len(sides):
                continue
            numbers = [sum(a.lost == side for a in counted) for side in (True, False)]
            return Split(key, lost, passing, min(numbers) > 1)
        return None

    def _end(self, agent: Agent) -> Party:
        target = agent.survey.target
        return self._party(agent.pod, target.namespace, target.node, target.addresses)

    def _party(
        self, pod: PodFacts | None, namespace: str, node: str, addresses: tuple[str, ...]
    ) -> Party:
        labels = self.evidence.namespaces.get(namespace)
        literal = tuple(address for address in addresses if network(address))
        own = (pod.addresses if pod else ()) or literal
        if self.plugin("cilium") is not None:
            own = ()  # it means the world outside by a block, and no pod or node
        if pod is None:
            return Party(namespace, namespace_labels=labels, addresses=own, node=node)
        return Party(
            namespace,
            pod.labels,
            labels,
            own,
            pod.ports,
            node,
            pod.host_network,
        )


def names(agents: Iterable[Agent]) -> tuple[str, ...]:
    """Their nodes."""
    return tuple(agent.name for agent in agents)


def _over(survey: Survey, via: str) -> set[Outcome]:
    """How that path ended, wherever it was tried."""
    outcomes = {path.outcome for each in survey.nodes for path in each.paths if path.via == via}
    return outcomes - {"not_tried"}


def _addresses(agent: Agent) -> tuple[str, ...]:
    return agent.pod.addresses if agent.pod else agent.addresses
