"""Rules on a GPU's NVLinks and on its place in the NVLink fabric."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, NamedTuple

from mcp_gpu.gpu.errors import NOT_SUPPORTED
from mcp_gpu.gpu.health.codes import CODES
from mcp_gpu.gpu.health.look import MIG_ACTIVE, Growth, Look, Unread, agreed
from mcp_gpu.gpu.health.model import Evidence, Finding
from mcp_gpu.gpu.vitals import Link

CRC_PER_SECOND: Final = 100.0
"""NVLink 1 to 4. DCGM: CRC errors matter only from this rate on."""

EFFECTIVE_BIT_ERROR_RATE: Final = 1e-12
"""NVLink 5, after correction. DCGM's limit; formerly any rate above the lowest that can be told."""

SYMBOL_ERROR_RATE: Final = 1e-12
"""UNVERIFIED: no published limit; only ever an info."""

REGISTRATION_SECONDS: Final = 300.0
"""A registration with the fabric that is in progress for less is taken for one after a boot or a
reset. UNVERIFIED."""

SHOWN_LINKS: Final = 4
"""Links that a finding has evidence of; the rest are counted."""

_UP: Final = frozenset({"active", "sleep"})
"""A link in low power is a link."""

_NOT_READY: Final = frozenset({"not_started", "in_progress"})

_PACKET_ERRORS: Final = (
    "malformed_packet_errors", "buffer_overrun_errors", "local_integrity_errors",
    "receive_remote_errors",
)  # fmt: skip
"""NVLink 5: those that a working link never has. Effective and symbol errors and discards come
with ordinary correction and with resets of a peer."""


class _Count(NamedTuple):
    up: int
    total: int | None
    down: tuple[str, ...]
    """Names of those that are down, where each is read."""


def links_up(look: Look) -> Iterator[Finding]:
    """Whether the links that should be up are.

    Which should: all where the board is wired to NVSwitches, as many as were up before, or as
    many as at least two peers have. Boards that are wired to each other promise less: one without
    a bridge has none whatever its peers have, bridges may be fewer than a board could have, and a
    board that is lost takes down the links of its neighbours.

    Raises:
        Unread: MIG is on, the fabric is not ready, or a neighbour is lost.
    """
    if look.get("mig_mode_current"):
        raise Unread(MIG_ACTIVE)  # Peers cannot be reached then, and links may be down.
    count = _count(look)
    if count.up == 0 and look.get("fabric_state") in _NOT_READY:
        raise Unread("the fabric is not ready")
    before = max((up for up in look.before("nvlink_active")), default=0)
    switched = (look.get("nvswitch_link_count") or 0) > 0
    fabric = switched or any(peer.nvswitch_link_count for peer in look.peers())
    bridgeless = not fabric and count.up == before == 0
    peers = agreed([peer.nvlink_active for peer in look.peers()], count.up) or 0
    alone = count.up == 0 and not look.peers()
    board = (count.total or 0) if switched and not alone else 0
    expected = max(before, 0 if bridgeless else peers, board)
    if count.up >= expected:
        return
    lost = [str(gpu.index) for gpu in look.snapshot.gpus if gpu.state != "ok"]
    if lost and not fabric:
        raise Unread(f"links may end at GPU {', '.join(lost)}, which cannot be read")
    if expected == board:
        why = f"all {board} of this board end at NVSwitches"
    elif expected == peers:
        why = f"its peers have {peers}"
    else:
        why = f"{before} were up before"
    nowhere = count.up == before == 0 and not any(peer.nvlink_active for peer in look.peers())
    evidence = [
        Evidence(reading="nvlink_up", value=count.up, unit="links",
                 age_seconds=look.age("nvlink_active"), note=why),
        look.evidence("nvlink_count"),
    ]  # fmt: skip
    if count.down:
        down = ", ".join(count.down[: 2 * SHOWN_LINKS])
        more = len(count.down) - 2 * SHOWN_LINKS
        evidence.append(
            Evidence(
                reading="links",
                value=down + (f" and {more} more" if more > 0 else ""),
                age_seconds=look.age("nvlink_active"),
            )
        )
    yield CODES["nvlink_down"].finding(
        look.index,
        f"GPU {look.index} has {count.up} NVLinks up and should have {expected}: {why}.",
        tuple(evidence),
        severity="warning" if nowhere else "critical",
        confidence="high" if expected == board and not nowhere else "medium",
    )


def _count(look: Look) -> _Count:
    links = look.vitals.links
    states = [link.state for link in links]
    if links and None not in states:
        down = tuple(f"{link.index} {link.state}" for link in links if link.state not in _UP)
        return _Count(len(links) - len(down), look.get("nvlink_count") or len(links), down)
    return _Count(look.read("nvlink_active"), look.get("nvlink_count"), ())


def link_errors(look: Look) -> Iterator[Finding]:
    """What the links count: of NVLink 1 to 4 or of NVLink 5, as the board has them."""
    _links_of(look)
    missing = []
    for rule in (_replays, _recoveries, _packets, _bit_errors):
        try:
            yield from rule(look)
        except Unread as unread:
            missing.append(unread.reason)
    # Which of the two a board lacks is its nature; what both lack, or cannot tell yet, is told.
    late = [reason for reason in missing if reason != NOT_SUPPORTED]
    if late or len(missing) == 4:
        raise Unread((late or missing)[0])


def _replays(look: Look) -> Iterator[Finding]:
    """NVLink 1 to 4. DCGM fails a GPU for one replay or recovery a minute; a link that has
    recovered works, so that it is a warning here."""
    crc = _grown(look, ("crc_errors",))
    fast = [growth for growth in crc if growth.by / growth.seconds >= CRC_PER_SECOND]
    repeated = _grown(look, ("recovery_errors", "replay_errors"))
    if fast:
        yield CODES["nvlink_errors"].finding(
            look.index,
            f"{_links(fast)} of GPU {look.index} have {CRC_PER_SECOND:.0f} or more CRC errors a "
            "second.",
            _shown([*fast, *repeated]),
        )
    elif repeated:
        yield CODES["nvlink_errors"].finding(
            look.index,
            f"{_links(repeated)} of GPU {look.index} had to repeat or recover.",
            _shown(repeated),
            severity="warning",
            confidence="medium",
        )


def _recoveries(look: Look) -> Iterator[Finding]:
    """NVLink 5: recoveries that failed. Those that succeeded are how a link is meant to live."""
    if failed := _grown(look, ("recoveries_failed",)):
        yield CODES["nvlink_recovery_failed"].finding(
            look.index,
            f"{_links(failed)} of GPU {look.index} could not recover.",
            _shown(failed),
        )


def _packets(look: Look) -> Iterator[Finding]:
    """NVLink 5."""
    if grown := _grown(look, _PACKET_ERRORS):
        yield CODES["nvlink5_errors"].finding(
            look.index,
            f"{_links(grown)} of GPU {look.index} have packets in error.",
            _shown(grown),
            confidence="medium",
        )


def _bit_errors(look: Look) -> Iterator[Finding]:
    """NVLink 5: error rates, which the links measure themselves and need no history."""
    links = _links_of(look)
    if all(link.effective_ber is None for link in links):
        raise Unread(links[0].unavailable.get("effective_ber", NOT_SUPPORTED))
    title = f"of GPU {look.index} have a high"
    if high := _above(look, "effective_ber", EFFECTIVE_BIT_ERROR_RATE):
        yield CODES["nvlink_bit_errors"].finding(
            look.index, f"{len(high)} NVLink(s) {title} bit error rate.", high[:SHOWN_LINKS]
        )
    elif high := _above(look, "symbol_ber", SYMBOL_ERROR_RATE):
        yield CODES["nvlink_bit_errors"].finding(
            look.index,
            f"{len(high)} NVLink(s) {title} symbol error rate.",
            high[:SHOWN_LINKS],
            severity="info",
            action="NONE",
            confidence="low",
        )


def _above(look: Look, name: str, limit: float) -> tuple[Evidence, ...]:
    return tuple(
        Evidence(
            reading=f"links[{link.index}].{name}",
            value=rate,
            age_seconds=look.age("nvlink_active"),
            note=f"up to {limit:g} is healthy",
        )
        for link in look.vitals.links
        if (rate := getattr(link, name)) is not None and math.isfinite(rate) and rate > limit
    )


def fabric(look: Look) -> Iterator[Finding]:
    """Hopper and later on NVSwitches: registration, and health where the driver tells it."""
    state = look.read("fabric_state")
    names = ("fabric_state", "fabric_status", "fabric_health")
    evidence = tuple(look.evidence(name) for name in names if look.get(name) is not None)
    status, health = look.get("fabric_status"), look.get("fabric_health")
    if state in _NOT_READY:
        begun = state == "in_progress"
        soon = begun and look.lasted("fabric_state") < REGISTRATION_SECONDS
        yield CODES["fabric_not_ready"].finding(
            look.index,
            f"GPU {look.index} is {'still being' if begun else 'not'} registered with the NVLink "
            "fabric: CUDA will not start on it.",
            evidence,
            severity="warning" if begun else "critical",
            action="NONE" if soon else None,
            advice="Nothing to do yet: after a boot or a reset this takes some minutes. Look again "
            "then."
            if soon
            else None,
            confidence="medium" if soon else "high",
        )
    elif status is not None and status != "success":
        yield CODES["fabric_failed"].finding(
            look.index,
            f"The registration of GPU {look.index} with the NVLink fabric has failed: {status}.",
            evidence,
        )
    elif health in {"unhealthy", "limited_capacity"}:
        limited = health == "limited_capacity"
        yield CODES["fabric_unhealthy"].finding(
            look.index,
            f"The NVLink fabric says of GPU {look.index}: {health.replace('_', ' ')}.",
            evidence,
            severity="warning" if limited else "critical",
        )


def _links_of(look: Look) -> tuple[Link, ...]:
    if not look.vitals.links:
        # A board without NVLinks says so where it is asked for their number.
        why = look.vitals.unavailable.get("links") or look.reason("nvlink_count")
        raise Unread(why)
    return look.vitals.links


def _grown(look: Look, names: tuple[str, ...]) -> list[Growth]:
    """Counters of links that grew over the window, most first. Raises: Unread: none is read."""
    _links_of(look)
    grown, missing, read = [], [], False
    for position in range(len(look.vitals.links)):
        for name in names:
            try:
                growth = look.growth(name, position)
            except Unread as unread:
                missing.append(unread.reason)
                continue
            read = True
            if growth.by > 0:
                grown.append(growth)
    if not read and missing:
        raise Unread(missing[0])
    return sorted(grown, key=lambda growth: -growth.by)


def _links(grown: list[Growth]) -> str:
    count = len({growth.reading.partition(".")[0] for growth in grown})
    return f"{count} NVLink(s)"


def _shown(grown: list[Growth]) -> tuple[Evidence, ...]:
    more = len(grown) - SHOWN_LINKS
    shown = [growth.evidence() for growth in grown[:SHOWN_LINKS]]
    if more > 0:
        shown[-1] = shown[-1].model_copy(update={"note": f"and {more} more counters like these"})
    return tuple(shown)
