"""Rules on heat and on what slows a GPU down: temperatures, margins, clock event counters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mcp_gpu.gpu.health.codes import CODES
from mcp_gpu.gpu.health.look import Look, Unread
from mcp_gpu.gpu.health.model import Finding

HARDWARE_SHARE: Final = 0.01
"""Part of the window from which a slowdown by hardware is a warning. DCGM warns of any; some
milliseconds at the start of a job are no fault, so this is ours. UNVERIFIED."""

SOFTWARE_SHARE: Final = 0.10
"""The same for the driver's own thermal regulation, which begins at the maximum operating
temperature and is how a warm board is meant to run for a while. UNVERIFIED."""

_COUNTED: Final = (
    ("hw_thermal_slowdown", "slowed_by_hw_thermal_seconds", HARDWARE_SHARE, "for heat"),
    ("sw_thermal_slowdown", "slowed_by_sw_thermal_seconds", SOFTWARE_SHARE, "for heat"),
    ("hw_power_brake", "slowed_by_hw_power_brake_seconds", HARDWARE_SHARE, "by a power brake"),
)
"""Reason, its counter, its limit. The software power cap, sync boost and idling have counters,
too, and run for hours on healthy boards: they are no findings."""


def temperature(look: Look) -> Iterator[Finding]:
    """By margin where the board has one (Ada and later), else by absolute thresholds."""
    margin = look.get("temperature_margin_celsius")
    if margin is not None:
        slowdown = look.get("margin_slowdown_celsius")
        if slowdown is not None and margin <= slowdown:
            severity, what = "critical", "its hardware slows it down"
        elif margin <= 0:
            severity, what = "warning", "the driver slows it down"
        else:
            return
        names = (
            "temperature_margin_celsius", "margin_slowdown_celsius", "margin_shutdown_celsius",
            "temperature_celsius",
        )  # fmt: skip
    else:
        now = look.read("temperature_celsius")
        slowdown = look.get("temperature_slowdown_celsius")
        most = look.get("temperature_gpu_max_celsius")
        if slowdown is None and most is None:
            raise Unread(look.reason("temperature_slowdown_celsius"))
        if slowdown is not None and now >= slowdown:
            severity, what = "critical", "its hardware slows it down"
        elif most is not None and now >= most:
            severity, what = "warning", "it may not be hotter"
        else:
            return
        names = (
            "temperature_celsius", "temperature_gpu_max_celsius", "temperature_slowdown_celsius",
            "temperature_shutdown_celsius",
        )  # fmt: skip
    yield CODES["gpu_hot"].finding(
        look.index,
        f"GPU {look.index} is so hot that {what}.",
        tuple(look.evidence(name) for name in names if look.get(name) is not None),
        severity="critical" if severity == "critical" else "warning",
    )


def memory_temperature(look: Look) -> Iterator[Finding]:
    """Where there is an absolute maximum: boards up to Ampere with HBM."""
    now, most = look.read("memory_temperature_celsius"), look.read("temperature_memory_max_celsius")
    if now >= most:
        yield CODES["memory_hot"].finding(
            look.index,
            f"The memory of GPU {look.index} is as hot as it may be.",
            tuple(
                map(look.evidence, ("memory_temperature_celsius", "temperature_memory_max_celsius"))
            ),
        )


def slowdown(look: Look) -> Iterator[Finding]:
    """Rates from counters. A momentary bit speaks only where its reason has no counter."""
    missing: list[str] = []
    bits = set(look.get("throttle_reasons") or ())
    counted = False
    for name, counter, limit, why in _COUNTED:
        try:
            growth = look.growth(counter)
        except Unread as unread:
            missing.append(unread.reason)
            if look.get(counter) is not None:
                bits.discard(name)
                counted = True
            continue
        counted = True
        bits.discard(name)
        if growth.by <= 0:
            continue
        warning = growth.share >= limit
        yield CODES[name].finding(
            look.index,
            f"GPU {look.index} was slowed down {why} for {growth.share:.1%} of the time.",
            (growth.evidence(f"a warning from {limit:.0%} of the time on"),),
            severity="warning" if warning else "info",
            action=None if warning else "NONE",
        )
    if counted:
        # It sums up the others, which are counted; alone it says nothing that can be acted on.
        bits.discard("hw_slowdown")
    if bits:
        yield CODES["slowed_now"].finding(
            look.index,
            f"GPU {look.index} is slowed down at this moment: {', '.join(sorted(bits))}.",
            (look.evidence("throttle_reasons", "one moment; this driver counts no time for it"),),
            confidence="low",
        )
    if missing:
        raise Unread(missing[0])
