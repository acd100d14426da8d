"""What slices, pods and nodes say together: who can be asked, who is missing, and why."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from mcp_gpu.fleet.discovery.nodes import Node
from mcp_gpu.fleet.discovery.pods import Pod
from mcp_gpu.fleet.discovery.slices import CONTAINER, Slice, merge
from mcp_gpu.fleet.discovery.table import AbsentAgent, Explanation
from transports.base import Target
from transports.errors import MESSAGE_CHARS
from transports.text import one_line

__all__ = ["Departures", "Roster", "draw_up"]

DEPARTED = "its agent's pod has gone, and no other has come yet"

UNLISTED = "no readable EndpointSlice lists it: is there a headless Service for the agents?"


@dataclass(frozen=True, slots=True)
class Roster:
    """Agents to ask, and nodes that should have one."""

    targets: tuple[Target, ...]
    absent: tuple[AbsentAgent, ...]
    explanations: Mapping[str, Explanation]
    """By `Target.key`."""

    def nodes(self) -> frozenset[str]:
        """All that it names."""
        named = {target.node for target in self.targets if target.node}
        return frozenset(named | {absent.node for absent in self.absent})


class Departures:
    """Nodes that a roster named and the next one does not.

    Between the end of an agent's pod and the making of the next one nothing names its node.
    """

    def __init__(self, retain_seconds: float) -> None:
        self._retain_seconds = retain_seconds
        self._last: frozenset[str] = frozenset()
        self._left: dict[str, float] = {}

    def notice(self, nodes: frozenset[str], now: float) -> None:
        """Compare with the roster before."""
        for node in self._last - nodes:
            self._left[node] = now
        for node in nodes & self._left.keys():
            del self._left[node]
        self._last = nodes

    def absent(self, now: float, existing: Collection[str] | None) -> list[AbsentAgent]:
        """Those that left a short while ago and still exist; `existing` None: nobody knows."""
        self._left = {
            node: since
            for node, since in self._left.items()
            if now - since <= self._retain_seconds and (existing is None or node in existing)
        }
        return [AbsentAgent(node, DEPARTED) for node in sorted(self._left)]


def draw_up(
    slices: Iterable[Slice],
    pods: Iterable[Pod],
    nodes: Mapping[str, Node],
    *,
    domain: str | None,
) -> Roster:
    """Compare the three.

    Args:
        pods: empty where they may not be read.
        nodes: by name; empty likewise.
        domain: the cluster's DNS domain, to reach agents by name; None to reach them by IP.
    """
    targets = merge(slices, domain=domain)
    known = {pod.uid: pod for pod in pods}
    listed = {target.uid for target in targets}
    for pod in known.values():
        # An agent that runs can be reached by a stream, listed or not.
        if pod.running and pod.node and pod.uid not in listed:
            targets.append(
                Target(
                    node=pod.node,
                    namespace=pod.namespace,
                    pod=pod.name,
                    uid=pod.uid,
                    container=CONTAINER,
                    ready=pod.ready,
                )
            )
    targets.sort(key=lambda target: (target.node, not target.ready, target.namespace, target.pod))
    explanations = {}
    for target in targets:
        explanation = _explain(target, known.get(target.uid), nodes.get(target.node), listed)
        if explanation is not None:
            explanations[target.key] = explanation
    absent = dict(_without_agent(known.values(), nodes))
    for target in targets:
        absent.pop(target.node, None)
    return Roster(
        tuple(targets),
        tuple(
            AbsentAgent(node, one_line(why, MESSAGE_CHARS)) for node, why in sorted(absent.items())
        ),
        explanations,
    )


def _explain(
    target: Target, pod: Pod | None, node: Node | None, listed: set[str]
) -> Explanation | None:
    said = []
    if pod is not None and pod.trouble:
        said.append(f"agent pod {target.pod} {pod.trouble}")
    if target.uid not in listed:
        said.append(UNLISTED)
    if node is not None and node.trouble:
        said.append(node.trouble)
    if not said:
        return None
    stopped = pod is not None and not pod.running
    return Explanation(one_line("; ".join(said), MESSAGE_CHARS), stopped)


def _without_agent(pods: Iterable[Pod], nodes: Mapping[str, Node]) -> Iterator[tuple[str, str]]:
    """Nodes and what keeps their agent away, as if none ran anywhere. The last word on a node
    counts."""
    for name, node in nodes.items():
        if node.gpus:
            why = node.obstacles or "check the DaemonSet's node selector and affinity"
            yield name, f"the node has NVIDIA GPUs and no agent pod; {why}"
    # Of several pods of a node, the newest is the one that should run.
    for pod in sorted(pods, key=lambda pod: pod.created):
        here = nodes.get(pod.node)
        why = f"agent pod {pod.name} {pod.trouble or 'has stopped'}"
        yield (
            pod.node or pod.name,
            "; ".join(part for part in (why, here.trouble if here else "") if part),
        )
