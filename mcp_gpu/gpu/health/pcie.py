"""Rules on a GPU's PCIe link: width and generation beside its peers', replays, errors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from mcp_gpu.gpu.health.codes import CODES
from mcp_gpu.gpu.health.look import NO_HISTORY, Look, Unread, agreed
from mcp_gpu.gpu.health.model import Evidence, Finding
from mcp_gpu.gpu.model import Gpu, Snapshot

LOAD_PERCENT: Final = 20
"""Utilisation from which a board has no reason to save power on its link. UNVERIFIED, and
generous: boards raise their link as soon as work begins."""

TOGETHER_SECONDS: Final = 5.0
"""A generation, read slowly, and a utilisation, read fast, count as of one moment within this."""

BIT_ERROR_RATE: Final = 1e-12
"""What PCI Express lets a lane have; DCGM warns beyond the replays that follow from it."""

_GBPS: Final = {1: 2.5, 2: 5.0, 3: 8.0, 4: 16.0, 5: 32.0, 6: 64.0}
"""Per lane and generation."""


def width(look: Look) -> Iterator[Finding]:
    """Beside peers of the same model in slots as wide: x8 of x16 on all is how some clouds are."""
    own, most = look.read("pcie_width_current"), look.get("pcie_width_max")
    peers = [peer for peer in look.peers() if peer.pcie_width_max == most]
    _two(peers)
    best = agreed([peer.pcie_width_current for peer in peers], own)
    if best is None:
        return
    yield CODES["pcie_width_low"].finding(
        look.index,
        f"GPU {look.index} has {own} PCIe lanes where its peers have {best}.",
        (
            look.evidence("pcie_width_current", f"{best} on peers of the same model"),
            look.evidence("pcie_width_max"),
        ),
        confidence="medium",
    )


def generation(look: Look) -> Iterator[Finding]:
    """Beside peers, all under load, and twice in a row: a board at rest lowers its own."""
    own = look.read("pcie_generation_current")
    _two(look.peers())
    if not _loaded(look.gpu):
        raise Unread("not under load")
    moments = [s for s in look.window.moments if _together(s) and _was_read(look, s)][-2:]
    best = None
    for moment in moments:
        best = _better_generation(look, moment)
        if best is None:
            return
    if len(moments) < 2:
        raise Unread(NO_HISTORY)
    yield CODES["pcie_generation_low"].finding(
        look.index,
        f"GPU {look.index} runs PCIe generation {own} under load where its peers run {best}.",
        (
            look.evidence("pcie_generation_current", f"{best} on peers under load"),
            look.evidence("pcie_generation_max"),
            look.evidence("utilization_gpu_percent"),
        ),
        confidence="medium",
    )


def replays(look: Look) -> Iterator[Finding]:
    """The rate alone: hundreds over a board's life are normal."""
    growth = look.growth("pcie_replays")
    lanes = look.get("pcie_width_current") or look.get("pcie_width_max")
    # The fastest that the link may have been at: a board that rests now may not have then.
    seen = [*look.before("pcie_generation_current"), look.get("pcie_generation_current")]
    fastest = max((g for g in seen if g in _GBPS), default=None)
    if lanes is None or fastest is None:
        raise Unread(look.reason("pcie_generation_current"))
    limit = math.ceil(BIT_ERROR_RATE * _GBPS[fastest] * 1e9 * 60 * lanes)
    if growth.per_minute > limit:
        evidence: tuple[Evidence, ...] = (
            growth.evidence(f"{growth.per_minute:.0f} a minute; up to {limit} are normal"),
        )
        if look.get("pcie_replay_rollovers"):
            evidence += (look.evidence("pcie_replay_rollovers"),)
        yield CODES["pcie_replays"].finding(
            look.index,
            f"The PCIe link of GPU {look.index} repeats {growth.per_minute:.0f} packets a minute.",
            evidence,
            confidence="medium",
        )


def errors(look: Look) -> Iterator[Finding]:
    """Fatal and non-fatal errors of the window. Correctable ones are what replays are for."""
    grown, missing = [], []
    for name in ("pcie_fatal_errors", "pcie_nonfatal_errors"):
        try:
            growth = look.growth(name)
        except Unread as unread:
            missing.append(unread.reason)
            continue
        if growth.by > 0:
            grown.append(growth)
    if grown:
        fatal = grown[0].reading == "pcie_fatal_errors"
        yield CODES["pcie_errors"].finding(
            look.index,
            f"The PCIe link of GPU {look.index} has {'fatal' if fatal else 'non-fatal'} errors.",
            tuple(growth.evidence() for growth in grown),
            severity="critical" if fatal else "warning",
            confidence="high" if fatal else "medium",
        )
    if missing:
        raise Unread(missing[0])


def _two(peers: list[Gpu]) -> None:
    if len(peers) < 2:
        raise Unread("fewer than two peers of the same model to compare with")


def _loaded(gpu: Gpu) -> bool:
    return (gpu.utilization_gpu_percent or 0) >= LOAD_PERCENT


def _together(snapshot: Snapshot) -> bool:
    if snapshot.fast_at is None or snapshot.slow_at is None:
        return False
    return abs(snapshot.fast_at - snapshot.slow_at) <= TOGETHER_SECONDS


def _was_read(look: Look, moment: Snapshot) -> bool:
    own = look.at(moment)
    return own is not None and own.state == "ok"


def _better_generation(look: Look, moment: Snapshot) -> int | None:
    """What at least two loaded peers ran then, if that is better than what this GPU did."""
    own = look.at(moment)
    if own is None or own.pcie_generation_current is None or not _loaded(own):
        return None
    shown = [
        peer.pcie_generation_current
        for peer in moment.gpus
        if peer is not own
        and peer.name == own.name
        and peer.state == "ok"
        and peer.pcie_generation_max == own.pcie_generation_max
        and _loaded(peer)
    ]
    best: int | None = agreed(shown, own.pcie_generation_current)
    return best
