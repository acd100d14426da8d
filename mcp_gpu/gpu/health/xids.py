"""Xids of this boot that ask for more than a restarted program, beside what is read now."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from mcp_gpu.gpu.health.codes import CODES
from mcp_gpu.gpu.health.look import Look
from mcp_gpu.gpu.health.model import Evidence, Finding
from mcp_gpu.gpu.xid.catalogue import XidEntry, entry, weight
from mcp_gpu.gpu.xid.model import Burst

FRESH_SECONDS: Final = 600.0
"""An Xid may have been dealt with by a reset, which is no new boot. One as young as this has
hardly been. UNVERIFIED."""

OFF_THE_BUS: Final = 79

DOUBLE_BIT: Final = 48
REMAPS: Final = frozenset({63, 64})
"""Beside a 48 they say that the bad memory is known: drain and reset (workflow of 48)."""

MEMORY: Final = frozenset({48, 63, 64, 92, 94, 95, 140, 156, 157, 171, 172})
"""Xids of the story that ECC counters and row remapping tell."""

LINKS: Final = frozenset({74, 136, *range(144, 151), 155})
"""Those of the story that NVLinks tell."""

_SHOWN_CODES: Final = 8
_BUS_ID = re.compile(r"([0-9a-f]{1,8}):([0-9a-f]{1,2}):([0-9a-f]{1,2})(?:\.[0-7])?")


def xids(looks: Sequence[Look], bursts: Sequence[Burst], at: float) -> Iterator[Finding]:
    """At most two findings per GPU and story: what still stands, and what is over."""
    for look in looks:
        seen = _on(bursts, look)
        codes = {burst.first.code for burst in seen}
        own = [(burst, told) for burst in seen if (told := _heavy(burst))]
        for family in (MEMORY, LINKS, None):
            some = [(b, told) for b, told in own if _family(b.first.code) is family]
            over = {id(burst): _over(look, burst) for burst, _ in some}
            if stands := [(b, told) for b, told in some if over[id(b)] is None]:
                yield _standing(look.index, f"GPU {look.index}", stands, codes, at)
            if past := [(b, told) for b, told in some if over[id(b)] is not None]:
                yield CODES["xid_past"].finding(
                    look.index,
                    f"GPU {look.index} had {_names(past)} in this boot; since cleared, or it "
                    "needed nothing.",
                    _evidence(past, at, str(over[id(past[0][0])])),
                    confidence="medium",
                )
    known = {place(look.gpu.pci_bus_id) for look in looks} - {None}
    strange: dict[str, list[tuple[Burst, XidEntry]]] = {}
    for burst in bursts:
        if place(burst.first.bus_id) not in known and (told := _heavy(burst)):
            strange.setdefault(burst.first.bus_id, []).append((burst, told))
    for bus_id, some in strange.items():
        where = f"A PCI device that is no GPU read here ({bus_id or 'not named'})"
        yield _standing(None, where, some, {burst.first.code for burst, _ in some}, at)


def bursts_on(bursts: Sequence[Burst], looks: Sequence[Look], gpu_index: int | None) -> list[Burst]:
    """Those of one GPU; with None, or for a GPU whose place is not known, all."""
    for look in looks:
        if look.index == gpu_index and place(look.gpu.pci_bus_id) is not None:
            return _on(bursts, look)
    return list(bursts)


def place(bus_id: str | None) -> tuple[int, int, int] | None:
    """Domain, bus and device, however they are written; None if they are not."""
    match = _BUS_ID.fullmatch((bus_id or "").lower())
    if match is None:
        return None
    domain, bus, device = (int(part, 16) for part in match.groups())
    return domain, bus, device


def _on(bursts: Sequence[Burst], look: Look) -> list[Burst]:
    own = place(look.gpu.pci_bus_id)
    return [burst for burst in bursts if own is not None and place(burst.first.bus_id) == own]


def _heavy(burst: Burst) -> XidEntry | None:
    """The catalogue's entry, if it asks for a reset at least. An NVSwitch's has none here."""
    told = entry(burst.first.code) if burst.first.kind == "xid" else None
    if told is None or told.unused or weight(told.action) < weight("RESET_GPU"):
        return None
    return told


def _family(code: int) -> frozenset[int] | None:
    return next((family for family in (MEMORY, LINKS) if code in family), None)


def _over(look: Look, burst: Burst) -> str | None:
    """What is read now, and later than the Xid, that contradicts it."""
    snapshot = look.snapshot
    if look.gpu.state != "ok" or snapshot.waiting is not None:
        return None
    if (snapshot.fast_at or 0) > burst.last_at:
        if look.get("recovery_action") == "none":
            return "recovery_action is none"
        if burst.first.code == OFF_THE_BUS:
            return "the GPU answers"
    clean = ("row_remap_pending", "row_remap_failure", "ecc_uncorrected_volatile")
    if (
        burst.first.code in MEMORY
        and (snapshot.slow_at or 0) > burst.last_at
        and all(look.get(name) is not None and not look.get(name) for name in clean)
    ):
        return "no uncorrected errors and no remapped row waits"
    return None


def _standing(
    gpu_index: int | None,
    who: str,
    some: list[tuple[Burst, XidEntry]],
    codes: set[int],
    at: float,
) -> Finding:
    action = max((told.action for _, told in some), key=weight)
    if DOUBLE_BIT in codes and REMAPS & codes and weight(action) < weight("DRAIN_AND_RESET"):
        action = "DRAIN_AND_RESET"
    youngest = max(burst.last_at for burst, _ in some)
    # What a link's Xid asks for stands in its registers, and is often nothing.
    certain = any(_family(burst.first.code) is not LINKS for burst, _ in some)
    fresh = certain and at - youngest < FRESH_SECONDS
    return CODES["xid"].finding(
        gpu_index,
        f"{who} had {_names(some)} in this boot, for which NVIDIA asks: {action}.",
        _evidence(some, at, ""),
        severity="critical" if fresh else "warning",
        action=action,
        confidence="high" if fresh else "medium",
    )


def _names(some: list[tuple[Burst, XidEntry]]) -> str:
    return "Xid " + ", ".join(map(str, sorted({burst.first.code for burst, _ in some})))


def _evidence(some: list[tuple[Burst, XidEntry]], at: float, note: str) -> tuple[Evidence, ...]:
    """One per code, with the age of the last."""
    by_code: dict[int, list[tuple[Burst, XidEntry]]] = {}
    for burst, told in some:
        by_code.setdefault(burst.first.code, []).append((burst, told))
    evidence = []
    for code, alike in sorted(by_code.items())[:_SHOWN_CODES]:
        times = sum(burst.count for burst, _ in alike)
        told = alike[0][1]
        parts = (told.name, f"{times} times" if times > 1 else "", note)
        evidence.append(
            Evidence(
                reading="xid",
                value=code,
                age_seconds=round(max(0.0, at - max(burst.last_at for burst, _ in alike)), 1),
                note="; ".join(part for part in parts if part),
            )
        )
    return tuple(evidence)
