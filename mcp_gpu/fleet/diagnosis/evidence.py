"""What a cluster says of its own network, read as far as the gateway's role lets it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio

from mcp_gpu.fleet.connectivity.model import Survey
from mcp_gpu.fleet.diagnosis.cni import Felix, IpPool, Plugin, read_felix, read_plugin, read_pool
from mcp_gpu.fleet.diagnosis.mesh import (
    OtherPolicy,
    PeerAuthentication,
    read_authentication,
    read_calico_policy,
    read_cilium_policy,
)
from mcp_gpu.fleet.diagnosis.model import Unread
from mcp_gpu.fleet.diagnosis.nodes import NodeFacts, read_node_facts
from mcp_gpu.fleet.diagnosis.pods import PodFacts, read_pod_facts
from mcp_gpu.fleet.diagnosis.policies import NetworkPolicy, read_policy
from transports.kubernetes import KubernetesApi, KubernetesError
from transports.text import one_line

__all__ = ["Evidence", "read_evidence"]

V = TypeVar("V")

READ_SECONDS = 10.0
"""For all reads together. 1,000 nodes are four pages, half a second."""

PAGE = 250
"""Objects per page: a node with its list of images is up to 30 KB, and parsing a page takes 0.1 s
in which nothing else runs."""

PARALLEL = 6
"""Reads at a time: the API server has others to serve."""

NAMESPACES = 20
"""The most whose pods and policies are read."""

WHY_CHARS = 200

CORE = "/api/v1"
APPS = "/apis/apps/v1"
NETWORKING = "/apis/networking.k8s.io/v1"
CALICO = "/apis/crd.projectcalico.org/v1"
CILIUM = "/apis/cilium.io/v2"
ISTIO = "/apis/security.istio.io/v1beta1"  # served by every Istio that is in use


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was read. Empty without a cluster."""

    nodes: Mapping[str, NodeFacts] = field(default_factory=dict)
    pods: Mapping[tuple[str, str], PodFacts] = field(default_factory=dict)
    """By namespace and name: the agents' and the gateway's own."""
    namespaces: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Labels by name."""
    policies: tuple[NetworkPolicy, ...] = ()
    pools: tuple[IpPool, ...] = ()
    felix: Felix | None = None
    plugins: tuple[Plugin, ...] = ()
    other_policies: tuple[OtherPolicy, ...] = ()
    authentications: tuple[PeerAuthentication, ...] = ()
    read: frozenset[str] = frozenset()
    """Resources whose objects are all known, that there are none included."""
    unread: tuple[Unread, ...] = ()


async def read_evidence(
    api: KubernetesApi, survey: Survey, *, selector: str = "", seconds: float = READ_SECONDS
) -> Evidence:
    """Read what a diagnosis of this survey can use. Raises nothing: what cannot be read is said.

    Args:
        api: entered by the caller. Of the cluster that all of the survey's agents are in.
        selector: label selector of the agents' pods.
        seconds: for all of it.
    """
    agents = {(each.target.namespace, each.target.pod) for each in survey.nodes if each.target.pod}
    if not agents:
        return Evidence()
    place = survey.place
    wanted = agents | {(place.namespace, place.pod)}
    spaces = sorted({namespace for namespace, _ in agents})
    reads = _Reads(api)
    reads.leave_out(spaces[NAMESPACES:])
    del spaces[NAMESPACES:]
    ends = sorted({*spaces, *([place.namespace] if place.namespace else [])})

    nodes: list[NodeFacts] = []
    pods: list[PodFacts] = []
    labels: list[tuple[str, Mapping[str, str]]] = []
    policies: list[NetworkPolicy] = []
    pools: list[IpPool] = []
    felix: list[Felix] = []
    plugins: list[Plugin] = []
    others: list[OtherPolicy] = []
    authentications: list[PeerAuthentication] = []

    def keep_pod(document: Mapping[str, Any]) -> PodFacts | None:
        metadata = document["metadata"]
        known = (metadata.get("namespace", ""), metadata["name"]) in wanted
        return read_pod_facts(document) if known else None

    reads.add(CORE, "nodes", "", read_node_facts, nodes)
    reads.add(APPS, "daemonsets", "", read_plugin, plugins)
    reads.add(CALICO, "ippools", "", read_pool, pools)
    reads.add(CALICO, "felixconfigurations", "", read_felix, felix)
    reads.add(CALICO, "globalnetworkpolicies", "", read_calico_policy, others)
    reads.add(CILIUM, "ciliumclusterwidenetworkpolicies", "", read_cilium_policy, others)
    reads.add(ISTIO, "peerauthentications", "", read_authentication, authentications)
    for space in spaces:
        reads.add(CORE, "pods", space, keep_pod, pods, labelSelector=selector)
    if place.pod and place.namespace:
        own = f"metadata.name={place.pod}"
        reads.add(CORE, "pods", place.namespace, keep_pod, pods, fieldSelector=own)
    for space in ends:
        name = f"metadata.name={space}"
        reads.add(CORE, "namespaces", "", _labels, labels, fieldSelector=name)
        reads.add(NETWORKING, "networkpolicies", space, read_policy, policies)
        reads.add(CALICO, "networkpolicies", space, read_calico_policy, others)
        reads.add(CILIUM, "ciliumnetworkpolicies", space, read_cilium_policy, others)
    await reads.run(seconds)
    return Evidence(
        nodes={each.name: each for each in nodes},
        pods={(each.namespace, each.name): each for each in pods},
        namespaces=dict(labels),
        policies=tuple(policies),
        pools=tuple(sorted(pools, key=lambda pool: pool.name)),
        felix=felix[0] if felix else None,
        plugins=tuple(plugins),
        other_policies=tuple(others),
        authentications=tuple(authentications),
        read=reads.complete,
        unread=tuple(sorted(reads.unread.values(), key=lambda each: each.what)),
    )


def _labels(document: Mapping[str, Any]) -> tuple[str, Mapping[str, str]]:
    metadata = document["metadata"]
    return metadata["name"], metadata.get("labels") or {}


class _Reads:
    """Lists of the API, each on its own: one that is refused takes nothing from the others."""

    def __init__(self, api: KubernetesApi) -> None:
        self.unread: dict[str, Unread] = {}
        """By what it is."""
        self._api = api
        self._planned: list[tuple[str, str, Callable[[], Awaitable[None]]]] = []
        self._done: set[int] = set()
        self._limiter = anyio.CapacityLimiter(PARALLEL)

    @property
    def complete(self) -> frozenset[str]:
        """Resources that have been read wherever they were to be."""
        asked = {resource for resource, _, _ in self._planned}
        missing = {r for i, (r, _, _) in enumerate(self._planned) if i not in self._done}
        return frozenset(asked - missing)

    def leave_out(self, namespaces: list[str]) -> None:
        """Say that these are not looked into."""
        if namespaces:
            what = f"pods and policies of {len(namespaces)} more namespaces"
            self.unread[what] = Unread(
                what=what, why=f"only {NAMESPACES} are looked into", grant=""
            )

    def add(
        self,
        group: str,
        plural: str,
        namespace: str,
        keep: Callable[[Mapping[str, Any]], V | None],
        into: list[V],
        **selectors: str,
    ) -> None:
        """Plan to read a collection; what `keep` makes of an object goes `into`, except None."""
        where = f"namespaces/{namespace}/{plural}" if namespace else plural
        api_group = "" if group == CORE else group.split("/")[2]
        resource = f"{plural}.{api_group}" if api_group else plural
        params = {name: text for name, text in selectors.items() if text}

        async def read() -> None:
            more = ""
            while True:
                asked = {"limit": str(PAGE), **params, **({"continue": more} if more else {})}
                page = await self._api.get(f"{group}/{where}", asked)
                kept = (keep(document) for document in page["items"])
                into.extend(each for each in kept if each is not None)
                more = page["metadata"].get("continue") or ""
                if not more:
                    return

        self._planned.append((resource, namespace, read))

    async def run(self, seconds: float) -> None:
        """Read all that is planned, as far as it goes in that time."""
        with anyio.move_on_after(seconds):
            async with anyio.create_task_group() as tasks:
                for index in range(len(self._planned)):
                    tasks.start_soon(self._try, index)
        for index, (resource, namespace, _) in enumerate(self._planned):
            if index not in self._done and _what(resource, namespace) not in self.unread:
                self._miss(resource, namespace, f"not read within {seconds:g} s", "")

    async def _try(self, index: int) -> None:
        resource, namespace, read = self._planned[index]
        try:
            async with self._limiter:
                await read()
        except KubernetesError as error:
            if error.status == 404:
                self._done.add(index)  # no such kind of object: it is not installed
                return
            where = f" in namespace {namespace}" if namespace else ""
            grant = f"list {resource}{where}" if error.status == 403 else ""
            self._miss(resource, namespace, "forbidden" if grant else error.message, grant)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # Custom resources hold whatever somebody has put there.
            problem = f"one is not as its kind should be: {type(error).__name__}: {error}"
            self._miss(resource, namespace, problem, "")
        else:
            self._done.add(index)

    def _miss(self, resource: str, namespace: str, why: str, grant: str) -> None:
        what = _what(resource, namespace)
        self.unread[what] = Unread(what=what, why=one_line(why, WHY_CHARS), grant=grant)


def _what(resource: str, namespace: str) -> str:
    return f"{resource} of {namespace}" if namespace else resource
