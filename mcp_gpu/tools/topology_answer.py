"""Makes `get_nvlink_topology`'s answer of one node from its latest snapshot."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from mcp_gpu.gpu.asymmetry import asymmetries
from mcp_gpu.gpu.history import Past
from mcp_gpu.gpu.model import Gpu, Snapshot
from mcp_gpu.gpu.topology import UP, Matrix, is_switched
from mcp_gpu.gpu.vitals import Vitals
from mcp_gpu.gpu.wire import NOT_REPORTED
from mcp_gpu.gpu.wiring import CAPABILITIES, Pair
from mcp_gpu.tools.health_readings import alike
from mcp_gpu.tools.inventory import Detail, reading_age, trouble
from mcp_gpu.tools.topology_model import (
    READ,
    TRAFFIC,
    FabricPlace,
    NodeTopology,
    PeerAccess,
    TopologyAsymmetry,
    TopologyGpu,
)
from mcp_gpu.tools.topology_text import shape

__all__ = ["of_node"]


def of_node(node: str, snapshot: Snapshot, past: Past, detail: Detail) -> NodeTopology:
    """Make the answer of one node from its latest snapshot."""
    matrix = Matrix(snapshot)
    vitals = {each.index: each for each in snapshot.vitals}
    gpus = tuple(_gpu(gpu, vitals.get(gpu.index, Vitals(index=gpu.index))) for gpu in snapshot.gpus)
    fabric = tuple(_fabric(snapshot.gpus))
    access = tuple(_access(list(matrix.pairs.values())))
    found = asymmetries(snapshot, past, matrix, at=time.time())
    return NodeTopology(
        node=node,
        state=snapshot.state,
        message=trouble(snapshot),
        simulated=snapshot.simulated,
        driver_version=snapshot.driver_version,
        age_seconds=reading_age(snapshot.slow_at),
        shape=shape(gpus, matrix.rows, access, fabric),
        models=dict(Counter(gpu.name or "unknown" for gpu in gpus)),
        asymmetries=tuple(TopologyAsymmetry(**each._asdict()) for each in found),
        matrix=matrix.rows,
        unknown=matrix.unknown,
        peer_access=access,
        fabric=fabric,
        gpus=gpus if detail == "full" else (),
    )


def _fabric(gpus: Sequence[Gpu]) -> Iterator[FabricPlace]:
    """Of a node of which no GPU has one nothing."""
    if all(gpu.fabric_state is None for gpu in gpus):
        return
    places: defaultdict[FabricPlace, list[int]] = defaultdict(list)
    for gpu in gpus:
        why = ""
        if gpu.fabric_clique_id is None:
            no_state = gpu.unavailable.get("fabric_state", NOT_REPORTED)
            why = f"registration {gpu.fabric_state}" if gpu.fabric_state else no_state
        place = FabricPlace(
            gpus=(),
            state=gpu.fabric_state,
            health=gpu.fabric_health,
            cluster_uuid=gpu.fabric_cluster_uuid,
            clique_id=gpu.fabric_clique_id,
            chassis_serial=gpu.chassis_serial,
            why=why,
        )
        places[place].append(gpu.index)
    for place, indices in places.items():
        yield place.model_copy(update={"gpus": tuple(indices)})


def _gpu(gpu: Gpu, vitals: Vitals) -> TopologyGpu:
    values = {name: getattr(gpu, name) for name in READ}
    reasons = {name: gpu.unavailable.get(name, NOT_REPORTED) for name in READ}
    down: defaultdict[str, list[int]] = defaultdict(list)
    for link in vitals.links:
        if link.state not in UP:
            down[link.state or "unknown"].append(link.index)
    values["nvlinks"] = len(vitals.links) or gpu.nvlink_count
    values["nvlinks_up"] = (
        sum(link.state in UP for link in vitals.links) if vitals.links else gpu.nvlink_active
    )
    reasons["nvlinks"] = gpu.unavailable.get("nvlink_count", NOT_REPORTED)
    reasons["nvlinks_up"] = gpu.unavailable.get("nvlink_active", NOT_REPORTED)
    values["switched"] = is_switched(gpu, vitals)
    reasons["switched"] = gpu.unavailable.get("nvswitch_link_count", NOT_REPORTED)
    for name in TRAFFIC:
        values[name] = None if gpu.gpm is None else getattr(gpu.gpm, name)
        where = gpu.unavailable if gpu.gpm is None else gpu.gpm.unavailable
        reasons[name] = where.get("gpm" if gpu.gpm is None else name, NOT_REPORTED)
    return TopologyGpu(
        index=gpu.index,
        state=gpu.state,
        nvlinks_down={state: tuple(links) for state, links in down.items()},
        links=tuple(alike(vitals.links)),
        unavailable={name: reasons[name] for name, value in values.items() if value is None},
        **values,
    )


def _access(pairs: list[Pair]) -> Iterator[PeerAccess]:
    groups: defaultdict[tuple[str | None, ...], list[tuple[int, int]]] = defaultdict(list)
    for pair in pairs:
        key = tuple(getattr(pair, name) for name in CAPABILITIES)
        groups[key].append((pair.first, pair.second))
    counts = Counter({key: len(members) for key, members in groups.items()})
    for place, (key, count) in enumerate(counts.most_common()):
        yield PeerAccess(
            **dict(zip(CAPABILITIES, key, strict=True)),
            pairs=count,
            which=() if place == 0 else tuple(groups[key]),
        )
