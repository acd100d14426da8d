"""What of a node's wiring differs among GPUs that should be alike: `asymmetries`.

Boards differ by design: one without NVLinks or without a bridge has none, pairs of bridged boards
are joined and others are not, a virtual machine is shown one PCIe tree. So a GPU is held against
its peers of the same model, a pair against pairs of the same kind, and where nobody is in the
majority nobody is called odd.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Final, Literal, NamedTuple, TypeVar

from mcp_gpu.gpu.health.look import Look, Unread, Window
from mcp_gpu.gpu.health.nvlink import links_up
from mcp_gpu.gpu.history import Past
from mcp_gpu.gpu.model import Gpu, Snapshot
from mcp_gpu.gpu.topology import UNKNOWN, Matrix
from mcp_gpu.gpu.wiring import CAPABILITIES

__all__ = ["Asymmetry", "Kind", "asymmetries"]

Kind = Literal["links_down", "numa_side", "pcie_path", "fabric", "peer_access"]

PAIRS_TOLD: Final = 6
"""Pairs named in one sentence; the rest are counted."""

G = TypeVar("G", bound=Hashable)


class Asymmetry(NamedTuple):
    """One thing that differs."""

    kind: Kind
    gpus: tuple[int, ...]
    text: str
    """A sentence: what differs from what."""


def asymmetries(snapshot: Snapshot, past: Past, matrix: Matrix, *, at: float) -> list[Asymmetry]:
    """What differs, links first. A GPU that is lost, or cut by MIG, is left out: it differs, and
    health says so.

    Args:
        past: earlier snapshots; links that were up before should be.
        at: Unix time.
    """
    found = list(_links(snapshot, past, at))
    alike: defaultdict[str, list[Gpu]] = defaultdict(list)
    for gpu in snapshot.gpus:
        if gpu.state == "ok" and gpu.name and not gpu.mig_mode_current:
            alike[gpu.name].append(gpu)
    for gpus in alike.values():
        found += _fabric(gpus)
        found += _sides(gpus)
        found += _paths(gpus, matrix)
        found += _access(gpus, snapshot, matrix)
    return found


def _links(snapshot: Snapshot, past: Past, at: float) -> Iterator[Asymmetry]:
    """As the health rule has it: one truth about which links should be up."""
    window = Window(snapshot, past)
    for position, gpu in enumerate(snapshot.gpus):
        if gpu.state != "ok":
            continue
        try:
            for finding in links_up(Look(snapshot, position, window, at)):
                yield Asymmetry("links_down", (gpu.index,), finding.title)
        except Unread:
            pass  # MIG hides them, or there is none: health names what could not be checked.


def _fabric(gpus: Sequence[Gpu]) -> Iterator[Asymmetry]:
    places = {
        gpu.index: (gpu.fabric_state, gpu.fabric_cluster_uuid, gpu.fabric_clique_id)
        for gpu in gpus
        if gpu.fabric_state is not None
    }
    usual = _usual(places)
    for place, odd in _apart(places, usual):
        if usual is None:
            yield Asymmetry("fabric", odd, f"{_named(odd)}: {_domain(place)}; others differ.")
        else:
            yield Asymmetry(
                "fabric", odd, f"{_named(odd)}: {_domain(place)}; its peers: {_domain(usual)}."
            )


def _domain(place: tuple[str | None, str | None, int | None]) -> str:
    state, cluster, clique = place
    where = "" if clique is None else f", clique {clique} of cluster {cluster}"
    return f"fabric registration {state}{where}"


def _sides(gpus: Sequence[Gpu]) -> Iterator[Asymmetry]:
    """An even number of boards is put half on each CPU, neighbours together: one that has left its
    neighbours for a side that has too many is on the wrong one."""
    known = [gpu for gpu in gpus if gpu.numa_node is not None]
    sizes = Counter(gpu.numa_node for gpu in known)
    if len(known) % 2 or len(sizes) < 2 or len(set(sizes.values())) == 1:
        return
    runs = [
        (node, tuple(gpu.index for gpu in run))
        for node, run in groupby(known, key=lambda gpu: gpu.numa_node)
    ]
    fullest = max(sizes, key=lambda node: sizes[node])
    parts = [run for node, run in runs if node == fullest]
    shape = ", ".join(
        f"node {node} has {count}" for node, count in sorted(sizes.items(), key=_by_node)
    )
    if len(parts) > 1 and list(sizes.values()).count(sizes[fullest]) == 1:
        odd = min(parts, key=len)
        text = f"{_named(odd)}: on NUMA node {fullest} among neighbours on another; {shape}."
    else:
        odd = tuple(gpu.index for gpu in known)
        text = f"The GPUs are spread unevenly over NUMA nodes: {shape}."
    yield Asymmetry("numa_side", odd, text)


def _by_node(side: tuple[int | None, int]) -> int:
    return side[0] or 0


def _paths(gpus: Sequence[Gpu], matrix: Matrix) -> Iterator[Asymmetry]:
    """Among GPUs of one NUMA node: whose ways over PCIe to the others of it are not as theirs."""
    nodes: defaultdict[int | None, list[int]] = defaultdict(list)
    for gpu in gpus:
        nodes[gpu.numa_node].append(gpu.index)
    for members in nodes.values():
        ways = {
            index: tuple(sorted(Counter(_path(matrix, index, peer) for peer in members).items()))
            for index in members
        }
        usual = _usual(ways)
        if usual is None or any(UNKNOWN in dict(way) for way in ways.values()):
            continue
        for way, odd in _apart(ways, usual):
            yield Asymmetry(
                "pcie_path", odd, f"{_named(odd)}: over PCIe {_way(way)}; its peers: {_way(usual)}."
            )


def _path(matrix: Matrix, one: int, other: int) -> str:
    """The way over PCIe; empty for a GPU and itself."""
    if one == other:
        return ""
    pair = matrix.pairs.get((min(one, other), max(one, other)))
    return UNKNOWN if pair is None or pair.path is None else pair.path


def _way(way: tuple[tuple[str, int], ...]) -> str:
    return ", ".join(f"{path} to {count}" for path, count in way if path)


def _access(gpus: Sequence[Gpu], snapshot: Snapshot, matrix: Matrix) -> Iterator[Asymmetry]:
    """Pairs without a peer access that most pairs joined in the same way have."""
    position = {gpu.index: place for place, gpu in enumerate(snapshot.gpus)}
    kinds: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    indices = {gpu.index for gpu in gpus}
    for first, second in matrix.pairs:
        if {first, second} <= indices:
            cell = matrix.rows[position[first]][position[second]]
            # Fewer links are links all the same.
            kinds["NVLink" if cell.startswith("NV") else cell].append((first, second))
    for kind, pairs in kinds.items():
        for name in CAPABILITIES:
            said = {
                pair: status
                for pair in pairs
                if (status := getattr(matrix.pairs[pair], name)) is not None
            }
            lacking = [pair for pair, status in said.items() if status != "ok"]
            if not lacking or 2 * len(lacking) >= len(said):
                continue
            why = ", ".join(sorted({said[pair] for pair in lacking}))
            odd = tuple(sorted({index for pair in lacking for index in pair}))
            shown = ", ".join(f"{one}-{other}" for one, other in lacking[:PAIRS_TOLD])
            more = len(lacking) - PAIRS_TOLD
            yield Asymmetry(
                "peer_access",
                odd,
                f"GPU pairs {shown}{f' and {more} more' if more > 0 else ''}: no peer {name} "
                f"({why}); the other {len(said) - len(lacking)} pairs joined by {kind} have it.",
            )


def _usual(values: Mapping[int, G]) -> G | None:
    """What more than half of at least three GPUs have."""
    if len(values) < 3:
        return None
    ((usual, count),) = Counter(values.values()).most_common(1)
    return usual if 2 * count > len(values) else None


def _apart(values: Mapping[int, G], usual: G | None) -> Iterator[tuple[G, tuple[int, ...]]]:
    """Those that have something else, by what they have; nobody where all have one thing."""
    groups: defaultdict[G, list[int]] = defaultdict(list)
    for index, value in values.items():
        groups[value].append(index)
    for value, members in groups.items():
        if value != usual and len(groups) > 1:
            yield value, tuple(members)


def _named(indices: Sequence[int]) -> str:
    return f"GPU {', '.join(map(str, indices))}"
