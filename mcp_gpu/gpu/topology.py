"""The matrix of a node's GPUs as `nvidia-smi topo -m` has it: `Matrix`.

X on the diagonal; NV18 for two GPUs that 18 active NVLinks join, directly or through switches;
else the way over PCIe: PIX, PXB, PHB, NODE or SYS. "?" where nobody knows, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from mcp_gpu.gpu.errors import LASTING, NOT_SUPPORTED
from mcp_gpu.gpu.model import Gpu, Snapshot
from mcp_gpu.gpu.vitals import Link, Vitals
from mcp_gpu.gpu.wiring import Pair

__all__ = ["SELF", "UNKNOWN", "UP", "Matrix", "is_switched"]

SELF: Final = "X"
UNKNOWN: Final = "?"

UP: Final = frozenset({"active", "sleep"})
"""States of a link that is one; it may be in low power."""

NOT_ASKED: Final = "not_read"
"""Reason: the wiring is read on demand, and the demand was not met in time."""


class _Side(NamedTuple):
    """One GPU as the other sees it."""

    gpu: Gpu
    to_switches: int
    """Links that are up."""
    to_gpus: dict[str, int]
    """Bus id to links that are up."""
    lost_ends: str
    """The reason why some links that are up lead nobody knows where, or may be there; empty: all
    are known."""


class Matrix:
    """Of one node at one moment.

    Attributes:
        rows: by the order of `Snapshot.gpus`.
        unknown: why cells are "?": "3" for all of that GPU's, "0-3" for those two.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.unknown: dict[str, str] = {}
        ends = {}
        pairs: dict[tuple[int, int], Pair] = {}
        if snapshot.wiring is not None:
            ends = {(end.gpu, end.link): end.bus_id for end in snapshot.wiring.ends}
            pairs = {(pair.first, pair.second): pair for pair in snapshot.wiring.pairs}
        self.pairs = pairs
        vitals = {each.index: each for each in snapshot.vitals}
        sides = [
            _side(gpu, vitals.get(gpu.index, Vitals(index=gpu.index)), ends)
            for gpu in snapshot.gpus
        ]
        self.rows = tuple(tuple(self._cell(one, other) for other in sides) for one in sides)

    def _cell(self, one: _Side, other: _Side) -> str:
        if one.gpu.index == other.gpu.index:
            return SELF
        for side in (one, other):
            if side.gpu.state != "ok":
                reason = next(iter(side.gpu.unavailable.values()), side.gpu.state)
                self.unknown[str(side.gpu.index)] = reason
                return UNKNOWN
        first, second = sorted((one.gpu.index, other.gpu.index))
        pair = self.pairs.get((first, second))
        links, reason = _links(one, other, pair)
        if links:
            return f"NV{links}"
        if not reason:
            if pair is not None and pair.path is not None:
                return pair.path
            reason = NOT_ASKED if pair is None else pair.unavailable["path"]
        self.unknown[f"{first}-{second}"] = reason
        return UNKNOWN


def _links(one: _Side, other: _Side, pair: Pair | None) -> tuple[int, str]:
    """How many links join the two; or 0 and why nobody knows whether any do, empty if none does."""
    if one.to_switches and other.to_switches and not _apart(one.gpu, other.gpu):
        return min(one.to_switches, other.to_switches), ""
    direct = [
        here.to_gpus.get(place, 0)
        for here, there in ((one, other), (other, one))
        if (place := _place(there.gpu.pci_bus_id))
    ]
    if any(direct):
        return max(direct), ""
    if pair is not None and pair.nvlink not in {"ok", None}:
        return 0, ""  # The driver itself says that no NVLink joins them.
    return 0, one.lost_ends or other.lost_ends


def _apart(one: Gpu, other: Gpu) -> bool:
    """Whether the fabric's manager keeps two GPUs on the same switches from each other."""
    places = [(gpu.fabric_cluster_uuid, gpu.fabric_clique_id) for gpu in (one, other)]
    return None not in {clique for _, clique in places} and places[0] != places[1]


def _side(gpu: Gpu, vitals: Vitals, ends: dict[tuple[int, int], str]) -> _Side:
    to_gpus: dict[str, int] = {}
    to_switches, lost = 0, ""
    if "links" in vitals.unavailable and vitals.unavailable["links"] not in LASTING:
        lost = vitals.unavailable["links"]
    for link in _up(vitals):
        place = _place(ends.get((gpu.index, link.index)))
        if link.remote == "switch" or (link.remote is None and gpu.nvswitch_link_count):
            to_switches += 1
        elif place:
            to_gpus[place] = to_gpus.get(place, 0) + 1
        elif link.remote in {"gpu", None}:
            lost = lost or link.unavailable.get("remote", NOT_SUPPORTED)
    return _Side(gpu, to_switches, to_gpus, lost)


def _up(vitals: Vitals) -> Iterator[Link]:
    return (link for link in vitals.links if link.state in UP)


def is_switched(gpu: Gpu, vitals: Vitals) -> bool | None:
    """Whether a GPU's NVLinks end at NVSwitches; None: it has none, or nobody knows."""
    if gpu.nvswitch_link_count is not None and gpu.nvlink_count:
        return gpu.nvswitch_link_count > 0
    remotes = {link.remote for link in vitals.links} - {None}
    return "switch" in remotes if remotes else None


def _place(bus_id: str | None) -> str:
    """A bus id as every driver would write it: some have four digits of the domain."""
    domain, _, rest = (bus_id or "").partition(":")
    return f"{domain.lstrip('0')}:{rest.lower()}" if rest else ""
