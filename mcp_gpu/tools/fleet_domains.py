"""NVLink domains over several nodes, as in a rack of NVL72: who is in which, and who is missing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from mcp_gpu.tools.fleet_topology_model import Domain, FleetNodeTopology
from mcp_gpu.tools.spans import counted, numbers, spans
from mcp_gpu.tools.topology_model import FabricPlace

__all__ = ["domain_line", "domains"]

MISSING_LISTED: Final = 12

_NO_CLUSTER: Final = "00000000-0000-0000-0000-000000000000"
"""Of boards whose fabric ends with their node."""

Key = tuple[str, int]


def domains(nodes: Sequence[FleetNodeTopology]) -> list[Domain]:
    """Those of the nodes that answered: with missing members first, then the largest."""
    members: defaultdict[Key, list[tuple[str, FabricPlace]]] = defaultdict(list)
    chassis: defaultdict[str, list[FleetNodeTopology]] = defaultdict(list)
    named = {node.node: node for node in nodes}
    for node in nodes:
        for place in node.fabric:
            if (key := _key(place)) is not None:
                members[key].append((node.node, place))
        for serial in {place.chassis_serial for place in node.fabric} - {None}:
            chassis[serial or ""].append(node)
    found = []
    for key, inside in members.items():
        # Where others of a node or of a chassis are in it, so should be the rest.
        near = {node: named[node] for node, _ in inside}
        for _, place in inside:
            near |= {node.node: node for node in chassis[place.chassis_serial or ""]}
        found.append(_domain(key, inside, [near[name] for name in sorted(near)]))
    return sorted(found, key=lambda one: (not one.missing, -one.gpus, one.cluster_uuid))


def _key(place: FabricPlace) -> Key | None:
    if place.cluster_uuid in {None, _NO_CLUSTER} or place.clique_id is None:
        return None
    return place.cluster_uuid or "", place.clique_id


def _domain(
    key: Key, inside: Sequence[tuple[str, FabricPlace]], near: Sequence[FleetNodeTopology]
) -> Domain:
    names = {node for node, _ in inside}
    missing = [text for node in near for text in _missing(node, key)]
    return Domain(
        cluster_uuid=key[0],
        clique_id=key[1],
        nodes=len(names),
        gpus=sum(len(place.gpus) for _, place in inside),
        names=spans(names),
        missing=tuple(missing[:MISSING_LISTED]),
        missing_omitted=max(len(missing) - MISSING_LISTED, 0),
    )


def _missing(node: FleetNodeTopology, key: Key) -> Iterator[str]:
    for place in node.fabric:
        other = _key(place)
        if other == key:
            continue
        why = place.why or f"in clique {place.clique_id}"
        if other is not None and other[0] != key[0]:
            why += f" of cluster {other[0]}"
        yield f"{node.node} GPU {numbers(place.gpus)}: {why}"


def domain_line(domain: Domain) -> str:
    """`NVLink domain clique 7 of cluster ...: 72 GPUs on 18 nodes: n01-n18; missing: ...`."""
    told = (
        f"NVLink domain clique {domain.clique_id} of cluster {domain.cluster_uuid}: "
        f"{counted(domain.gpus, 'GPU')} on {counted(domain.nodes)}: {domain.names}"
    )
    if not domain.missing:
        return told
    more = f" and {domain.missing_omitted} more" if domain.missing_omitted else ""
    return f"{told}; missing: {'; '.join(domain.missing)}{more}"
