"""`get_nvlink_topology` as an agent serves it: how the GPUs of its own node are joined."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mcp_gpu.gpu.history import Past
from mcp_gpu.gpu.model import Gpu, Snapshot
from mcp_gpu.gpu.topology import UP, Matrix, is_switched
from mcp_gpu.gpu.vitals import Vitals
from mcp_gpu.gpu.wire import NOT_REPORTED
from mcp_gpu.gpu.wiring import CAPABILITIES, Pair
from mcp_gpu.registry import Answer, Arguments, Call, Tool
from mcp_gpu.tools.health_readings import alike
from mcp_gpu.tools.inventory import (
    FRESH_TIMEOUT_SECONDS,
    MAX_AGE_SECONDS,
    Detail,
    reading_age,
    trouble,
)
from mcp_gpu.tools.topology_model import (
    NAME,
    READ,
    TRAFFIC,
    FabricPlace,
    NodeTopology,
    PeerAccess,
    TopologyAsymmetry,
    TopologyGpu,
)
from mcp_gpu.tools.topology_text import LINE_CHARS, TEXT_CHARS, node_lines, shape
from mcp_gpu.tools.xids import within

if TYPE_CHECKING:  # a gateway runs where there is no NVML, and shares only the models
    from mcp_gpu.gpu.collector import Collector

__all__ = ["AgentArguments", "agent_tool", "of_node"]


class AgentArguments(Arguments):
    """What an agent may be asked about its node."""

    detail: Detail = Field(
        default="full", description="summary leaves out the single GPUs, their links and traffic."
    )


def agent_tool(node: str, collector: Collector) -> Tool[AgentArguments]:
    """The tool over one node."""

    async def run(arguments: AgentArguments, call: Call) -> Answer:
        snapshot = await collector.complete(
            max_age_seconds=MAX_AGE_SECONDS, timeout_seconds=FRESH_TIMEOUT_SECONDS
        )
        found = of_node(node, snapshot, collector.past(), arguments.detail)
        lines = node_lines(found)
        if found.simulated:
            lines.append("SIMULATED: no real hardware stands behind this.")
        return Answer("\n".join(within(lines, TEXT_CHARS, LINE_CHARS)), found)

    return Tool(
        name=NAME,
        title="How this node's GPUs are joined",
        description=(
            "Show how this node's NVIDIA GPUs are joined: the matrix of nvidia-smi topo -m "
            "(NVLinks, PCIe, NUMA), NVSwitches, peer access, fabric clique, and traffic now "
            "(Hopper and later). What differs among GPUs that should be alike comes first: links "
            "that are down, a GPU on the wrong CPU, a missing peer access."
        ),
        arguments=AgentArguments,
        result=NodeTopology,
        run=run,
    )


def of_node(node: str, snapshot: Snapshot, past: Past, detail: Detail) -> NodeTopology:
    """Make the answer of one node from its latest snapshot."""
    from mcp_gpu.gpu.asymmetry import asymmetries

    matrix = Matrix(snapshot)
    vitals = {each.index: each for each in snapshot.vitals}
    gpus = tuple(_gpu(gpu, vitals.get(gpu.index, Vitals(index=gpu.index))) for gpu in snapshot.gpus)
    access = tuple(_access(list(matrix.pairs.values())))
    found = asymmetries(snapshot, past, matrix, at=time.time())
    return NodeTopology(
        node=node,
        state=snapshot.state,
        message=trouble(snapshot),
        simulated=snapshot.simulated,
        driver_version=snapshot.driver_version,
        age_seconds=reading_age(snapshot.slow_at),
        shape=shape(gpus, matrix.rows, access),
        models=dict(Counter(gpu.name or "unknown" for gpu in gpus)),
        asymmetries=tuple(TopologyAsymmetry(**each._asdict()) for each in found),
        matrix=matrix.rows,
        unknown=matrix.unknown,
        peer_access=access,
        fabric=tuple(_fabric(gpus)),
        gpus=gpus if detail == "full" else (),
    )


def _fabric(gpus: Sequence[TopologyGpu]) -> Iterator[FabricPlace]:
    """Of a node of which no GPU has one nothing."""
    places: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
    for gpu in gpus:
        why = ""
        if gpu.fabric_clique_id is None:
            why = gpu.unavailable.get("fabric_state", f"registration {gpu.fabric_state}")
        place = (gpu.fabric_state, gpu.fabric_cluster_uuid, gpu.fabric_clique_id)
        places[*place, gpu.chassis_serial, why].append(gpu.index)
    names = ("state", "cluster_uuid", "clique_id", "chassis_serial", "why")
    if any(state is not None for state, *_ in places):
        for place, indices in places.items():
            yield FabricPlace(gpus=tuple(indices), **dict(zip(names, place, strict=True)))


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
