"""One cause, one finding: which findings are told inside which other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mcp_gpu.gpu.health.codes import CODES
from mcp_gpu.gpu.health.model import Finding, Severity
from mcp_gpu.gpu.health.xids import LINKS, MEMORY
from mcp_gpu.gpu.xid.model import OFF_THE_BUS

WORST_FIRST: Final[tuple[Severity, ...]] = ("critical", "warning", "info")

ALL: Final = frozenset(range(1000))
"""Every Xid."""

_IMPORTANCE: Final = {code: place for place, code in enumerate(CODES)}


@dataclass(frozen=True, slots=True)
class _Lead:
    """A finding, and what it explains on the same GPU."""

    code: str
    follow: frozenset[str]
    xids: frozenset[int] = frozenset()
    """Those that belong to it."""

    def explains(self, finding: Finding) -> bool:
        if finding.code in _XIDS:
            codes = {one.value for one in finding.evidence if one.reading == "xid"}
            return codes <= self.xids
        return finding.code in self.follow


_XIDS: Final = frozenset({"xid", "xid_past"})
"""One that is over belongs to the story of what it has left behind as much as one that stands."""

_LINK_ERRORS: Final = frozenset(
    {"nvlink_errors", "nvlink_recovery_failed", "nvlink_bit_errors", "nvlink5_errors"}
)
_FABRIC: Final = frozenset({"fabric_not_ready", "fabric_failed", "fabric_unhealthy"})
_PENDING: Final = frozenset({"row_remap_pending", "retired_pages_pending", "repair_pending"})
_ECC: Final = frozenset({"ecc_uncorrected_rising", "ecc_uncorrected"})
_RESETS: Final = _ECC | {"row_remap_pending"}
"""What an Xid knows better than a counter is how the reset is to be made: drained first or not."""

_HANGS: Final = frozenset({"nvml_not_answering", "gsp_timeout"})
_UNUSABLE: Final = _HANGS | {"gpu_lost", "reset_required", "gpu_unreadable"}
_THROTTLES: Final = frozenset({"sw_thermal_slowdown", "slowed_now"})

_LEADS: Final = (
    _Lead(
        "recovery_action",
        _PENDING | _ECC | _UNUSABLE | {"nvlink_down", "nvlink_recovery_failed"},
        ALL,
    ),
    _Lead("gpu_lost", _HANGS, ALL),
    _Lead("reset_required", _PENDING | _ECC, ALL),
    _Lead("gsp_timeout", frozenset({"gpu_unreadable"}), ALL),
    _Lead("nvml_not_answering", frozenset({"gpu_unreadable"}), ALL),
    _Lead("gpu_unreadable", frozenset(), ALL),
    _Lead("gpu_count_low", frozenset(), frozenset({OFF_THE_BUS})),
    _Lead("row_remap_failure", frozenset({"row_remap_pending", "row_remap_exhausted"}), MEMORY),
    _Lead("ecc_uncorrected_rising", _PENDING, MEMORY),
    _Lead("ecc_uncorrected", _PENDING, MEMORY),
    _Lead("row_remap_pending", frozenset(), MEMORY),
    _Lead("nvlink_down", _LINK_ERRORS | _FABRIC, LINKS),
    _Lead("nvlink_recovery_failed", _LINK_ERRORS, LINKS),
    _Lead("gpu_hot", _THROTTLES | {"hw_thermal_slowdown"}),
    _Lead("hw_thermal_slowdown", _THROTTLES),
    _Lead("pcie_errors", frozenset({"pcie_replays", "pcie_width_low", "pcie_generation_low"})),
    _Lead("pcie_width_low", frozenset({"pcie_replays", "pcie_generation_low"})),
)  # fmt: skip
"""What leads most comes first. What asks for another action (the field diagnostic, cooling) than
a leader does is a story of its own."""


def told(findings: Iterable[Finding]) -> list[Finding]:
    """The findings of one GPU, or of a node as a whole, less those that others explain."""
    left = list(findings)
    for lead in _LEADS:
        leader = next((finding for finding in left if finding.code == lead.code), None)
        if leader is None:
            continue
        inside = [one for one in left if one is not leader and lead.explains(one)]
        if inside:
            gone = [leader, *inside]
            left = [one for one in left if not any(one is other for other in gone)]
            left.append(_joined(leader, inside))
    return sorted(left, key=importance)


def importance(finding: Finding) -> tuple[int, int, int]:
    """Worst first; within that what leads, then by GPU."""
    place = _IMPORTANCE.get(finding.code, len(_IMPORTANCE))
    index = -1 if finding.gpu_index is None else finding.gpu_index
    return WORST_FIRST.index(finding.severity), place, index


def _joined(leader: Finding, inside: list[Finding]) -> Finding:
    everything = [leader, *inside]
    weighed = everything
    if leader.action == "DRAIN_AND_RESET" and leader.code == "recovery_action":
        # The driver's word that jobs may end: only that none can go on outweighs it.
        weighed = [leader, *(one for one in inside if one.code in _UNUSABLE)]
    asks = leader
    if leader.code in _RESETS:
        asks = next((one for one in inside if one.code == "xid"), leader)
    return leader.model_copy(
        update={
            "action": asks.action,
            "advice": asks.advice,
            "severity": min((one.severity for one in weighed), key=WORST_FIRST.index),
            "evidence": tuple(evidence for one in everything for evidence in one.evidence),
            "includes": (
                *leader.includes, *(name for one in inside for name in (one.code, *one.includes)),
            ),
        }
    )  # fmt: skip
