"""NVLink domains over several nodes, as in a rack of NVL72: who is in which, and who is missing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from mcp_gpu.tools.fleet_topology_model import Domain, FleetNodeTopology
from mcp_gpu.tools.spans import counted, numbers, spans
from mcp_gpu.tools.topology_model import TopologyGpu

__all__ = ["domain_line", "domains"]

MISSING_LISTED: Final = 12

_NO_CLUSTER: Final = "00000000-0000-0000-0000-000000000000"
"""Of boards whose fabric ends with their node."""

Key = tuple[str, int]


def domains(nodes: Sequence[FleetNodeTopology]) -> list[Domain]:
    """Those of the nodes that answered: with missing members first, then the largest."""
    members: defaultdict[Key, list[tuple[FleetNodeTopology, TopologyGpu]]] = defaultdict(list)
    for node in nodes:
        for gpu in node.gpus:
            if (key := _key(gpu)) is not None:
                members[key].append((node, gpu))
    found = [_domain(key, inside, nodes) for key, inside in members.items()]
    return sorted(found, key=lambda one: (not one.missing, -one.gpus, one.cluster_uuid))


def _key(gpu: TopologyGpu) -> Key | None:
    cluster, clique = gpu.fabric_cluster_uuid, gpu.fabric_clique_id
    if cluster is None or clique is None or cluster == _NO_CLUSTER:
        return None
    return cluster, clique


def _domain(
    key: Key,
    inside: Sequence[tuple[FleetNodeTopology, TopologyGpu]],
    nodes: Sequence[FleetNodeTopology],
) -> Domain:
    names = {node.node for node, _ in inside}
    chassis = {gpu.chassis_serial for _, gpu in inside} - {None}
    missing = [text for node in nodes for text in _missing(node, key, names, chassis)]
    return Domain(
        cluster_uuid=key[0],
        clique_id=key[1],
        nodes=len(names),
        gpus=len(inside),
        names=spans(names),
        missing=tuple(missing[:MISSING_LISTED]),
        missing_omitted=max(len(missing) - MISSING_LISTED, 0),
    )


def _missing(
    node: FleetNodeTopology, key: Key, names: set[str], chassis: set[str | None]
) -> Iterator[str]:
    """GPUs that should be in a domain because others of their node or chassis are."""
    out: defaultdict[str, list[int]] = defaultdict(list)
    for gpu in node.gpus:
        other = _key(gpu)
        if other == key or not (node.node in names or gpu.chassis_serial in chassis):
            continue
        if other is not None:
            why = f"in clique {other[1]}" + ("" if other[0] == key[0] else " of another cluster")
        elif gpu.state != "ok":
            why = gpu.state
        elif gpu.fabric_state is None:
            why = f"fabric {gpu.unavailable.get('fabric_state', 'unknown')}"
        else:
            why = f"fabric registration {gpu.fabric_state}"
        out[why].append(gpu.index)
    for why, indices in out.items():
        yield f"{node.node} GPU {numbers(indices)}: {why}"


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
