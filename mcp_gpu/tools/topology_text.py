"""A node's topology for a model's or a person's eye: what differs first, then the matrix."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from mcp_gpu.gpu.topology import SELF, UNKNOWN
from mcp_gpu.tools.health_readings import LinkReadings
from mcp_gpu.tools.spans import counted, numbers
from mcp_gpu.tools.topology_model import FabricPlace, NodeTopology, PeerAccess, TopologyGpu
from mcp_gpu.tools.xids import within

__all__ = [
    "LEGEND",
    "LINE_CHARS",
    "TEXT_CHARS",
    "node_lines",
    "node_text",
    "remarks",
    "shape",
    "table",
]

TEXT_CHARS: Final = 8_000
"""The text of one node is never longer."""

LINE_CHARS: Final = 600
"""Length of one line."""

LEGEND: Final = (
    "NV#: so many active NVLinks, direct or through switches; PCIe: PIX one switch, PXB several, "
    "PHB a host bridge, NODE within a NUMA node, SYS across; ?: unknown"
)

_GIGA: Final = 1e9


def shape(
    gpus: Sequence[TopologyGpu],
    matrix: Sequence[Sequence[str]],
    access: Sequence[PeerAccess],
    fabric: Sequence[FabricPlace],
) -> str:
    """All of it in a line, the same for nodes that are wired alike."""
    if not gpus:
        return "no GPUs known"
    models = Counter(gpu.name or "unknown" for gpu in gpus)
    parts = [" + ".join(f"{count}x {name}" for name, count in models.items())]
    if len(gpus) > 1:
        parts.append(_joined(gpus, matrix))
        parts.append(_peers(access))
    parts.append(_sides(gpus))
    states = Counter[str]()
    for place in fabric:
        states.update({place.state: len(place.gpus)} if place.state is not None else {})
    if states:
        parts.append("fabric " + ", ".join(f"{name} ({n})" for name, n in sorted(states.items())))
    lost = sum(gpu.state != "ok" for gpu in gpus)
    if lost:
        parts.append(f"{counted(lost, 'GPU')} lost or unreadable")
    return "; ".join(part for part in parts if part)


def _joined(gpus: Sequence[TopologyGpu], matrix: Sequence[Sequence[str]]) -> str:
    cells = Counter(
        cell for row, cells in enumerate(matrix) for cell in cells[row + 1 :] if cell != SELF
    )
    if not cells:
        return "matrix unknown"
    through = " through NVSwitch" if any(gpu.switched for gpu in gpus) else ""
    told = [f"{'unknown' if cell == UNKNOWN else cell}" for cell in cells]
    if len(cells) == 1:
        return f"{told[0]} everywhere{through if told[0].startswith('NV') else ''}"
    return (
        ", ".join(
            f"{name} in {counted(count, 'pair')}"
            for name, count in zip(told, cells.values(), strict=True)
        )
        + through
    )


def _peers(access: Sequence[PeerAccess]) -> str:
    """Whether GPUs may read and write each other's memory; the rest is in the structure."""
    if not access:
        return "peer access unknown"
    said = Counter[str]()
    for group in access:
        statuses = {group.read, group.write}
        if statuses == {"ok"}:
            said["peer access"] += group.pairs
        elif None in statuses:
            said["peer access unknown"] += group.pairs
        else:
            said["no peer access"] += group.pairs
    if len(said) == 1:
        return next(iter(said))
    return ", ".join(f"{words} in {counted(count, 'pair')}" for words, count in said.items())


def _sides(gpus: Sequence[TopologyGpu]) -> str:
    sides: defaultdict[int, list[int]] = defaultdict(list)
    for gpu in gpus:
        if gpu.numa_node is not None:
            sides[gpu.numa_node].append(gpu.index)
    return ", ".join(
        f"NUMA {node}: GPU {numbers(members)}" for node, members in sorted(sides.items())
    )


def table(found: NodeTopology) -> Iterator[str]:
    """The matrix, with each GPU's CPUs and NUMA node where they are told, as nvidia-smi has it."""
    told = {gpu.index: gpu for gpu in found.gpus}
    names = [f"GPU{index}" for index in range(len(found.matrix))]
    width = max((len(cell) for row in (names, *found.matrix) for cell in row), default=0)
    rows = [("", tuple(names), ("CPUS", "NUMA") if told else ("", ""))]
    for index, (name, cells) in enumerate(zip(names, found.matrix, strict=True)):
        gpu = told.get(index)
        numa = UNKNOWN if gpu is None or gpu.numa_node is None else str(gpu.numa_node)
        place = ("", "") if gpu is None else (gpu.cpu_affinity or UNKNOWN, numa)
        rows.append((name, cells, place))
    room = max(len(cpus) for _, _, (cpus, _) in rows)
    for name, cells, (cpus, numa) in rows:
        shown = "  ".join(f"{cell:<{width}}" for cell in cells)
        yield f"{name:<{width}}  {shown}  {cpus:<{room}}  {numa}".rstrip()


def node_text(found: NodeTopology) -> str:
    """One node as its agent tells it."""
    lines = node_lines(found)
    if found.simulated:
        lines.append("SIMULATED: no real hardware stands behind this.")
    return "\n".join(within(lines, TEXT_CHARS, LINE_CHARS))


def node_lines(found: NodeTopology, *, via: str | None = None) -> list[str]:
    """One node: its shape, what differs, the matrix, why cells are unknown, traffic and links."""
    lines = [f"{found.node}: {found.shape}" + (f"  via {via}" if via else "")]
    if found.message is not None:
        lines.append(f"! {found.message}")
    lines.extend(f"! {each.text}" for each in found.asymmetries)
    if len(found.matrix) > 1:
        lines.extend(table(found))
        lines.append(LEGEND)
    lines.extend(remarks(found))
    lines.extend(_links(found.gpus))
    return lines


def remarks(found: NodeTopology) -> Iterator[str]:
    """What belongs below the matrix: why cells are unknown, peer access that is not there, and
    the traffic."""
    yield from _unknown(found)
    yield from _without_access(found.peer_access)
    yield from _traffic(found.gpus)


def _unknown(found: NodeTopology) -> Iterator[str]:
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for where, reason in found.unknown.items():
        reasons[reason].append(where)
    for reason, places in reasons.items():
        yield f"unknown for GPU {', '.join(places)}: {reason}"


def _without_access(access: Sequence[PeerAccess]) -> Iterator[str]:
    for group in access:
        lacking = {
            name: status
            for name in ("read", "write", "nvlink", "atomics")
            if (status := getattr(group, name)) not in {"ok", None}
        }
        # That boards without NVLink have none is no news.
        lacking.pop("nvlink", None)
        if lacking:
            where = ", ".join(f"{one}-{other}" for one, other in group.which) or (
                "all pairs" if len(access) == 1 else "most pairs"
            )
            why = ", ".join(f"no {name} ({status})" for name, status in lacking.items())
            yield f"peer access of {where}: {why}"


def _traffic(gpus: Sequence[TopologyGpu]) -> Iterator[str]:
    told = [
        f"GPU {gpu.index} {sent / _GIGA:.1f}/{received / _GIGA:.1f}"
        for gpu in gpus
        if (sent := gpu.nvlink_transmit_bytes_per_second) is not None
        and (received := gpu.nvlink_receive_bytes_per_second) is not None
        and gpu.nvlinks_up
    ]
    if told:
        yield f"NVLink traffic now, sent/received GB/s: {', '.join(told)}"


def _links(gpus: Sequence[TopologyGpu]) -> Iterator[str]:
    without: defaultdict[str, list[int]] = defaultdict(list)
    for gpu in gpus:
        if gpu.nvlinks is None:
            without[gpu.unavailable.get("nvlinks", UNKNOWN)].append(gpu.index)
    for reason, indices in without.items():
        yield f"GPU {numbers(indices)}: no NVLinks known ({reason})"
    for gpu in gpus:
        for group in gpu.links:
            yield f"GPU {gpu.index} NVLink {numbers(group.links)}: {_link(group)}"


def _link(group: LinkReadings) -> str:
    errors = ", ".join(
        f"{name} {value:g}"
        for name, value in group.values.items()
        if name not in {"state", "remote"} and value and not isinstance(value, str)
    )
    state = group.values.get("state", "state unknown")
    remote = group.values.get("remote", "an unknown end")
    return f"{state}, to {remote}; {errors or 'no errors'}"
