"""What is recorded of a GPU: `METRICS`, by name.

Levels are read at a moment. The others are increases of counters that the driver has kept since it
was loaded, over the time from one reading to the next.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from mcp_gpu.gpu.model import Gpu
from mcp_gpu.gpu.vitals import Vitals

__all__ = ["COUNTERS", "LEVELS", "METRICS", "Metric", "Parts", "counters", "increase", "levels"]

Kind = Literal["level", "share", "count"]
"""share: seconds of the interval, told as percent of it; count: how many came in it."""

_LINK_ERRORS: Final = (
    "replay_errors",
    "recovery_errors",
    "crc_errors",
    "malformed_packet_errors",
    "buffer_overrun_errors",
    "receive_errors",
    "local_integrity_errors",
    "recoveries_failed",
    "effective_errors",
)
"""Of `Link`. Not what is corrected on healthy links all the time, such as symbol errors."""


class Metric(NamedTuple):
    """One recorded quantity."""

    name: str
    unit: str
    """Empty: a number of errors."""
    kind: Kind
    least: float
    """The smallest change of a level or a share, or the smallest count, that is worth telling; what
    changes of different metrics are compared by. This project's choice."""
    field: str
    """Of `Gpu` or `Vitals`, under whose name `unavailable` says why it cannot be read."""


LEVELS: Final = (
    Metric("temperature_celsius", "C", "level", 5.0, "temperature_celsius"),
    Metric("memory_temperature_celsius", "C", "level", 5.0, "memory_temperature_celsius"),
    Metric("power_draw_watts", "W", "level", 40.0, "power_draw_watts"),
    Metric("clock_sm_mhz", "MHz", "level", 150.0, "clock_sm_mhz"),
    Metric("clock_memory_mhz", "MHz", "level", 150.0, "clock_memory_mhz"),
    Metric("utilization_gpu_percent", "%", "level", 15.0, "utilization_gpu_percent"),
    Metric("utilization_memory_percent", "%", "level", 15.0, "utilization_memory_percent"),
    Metric("memory_used_bytes", "B", "level", float(2 << 30), "memory_used_bytes"),
)
"""Fields of `Gpu` by the same names, in the order of `Track`'s columns."""

COUNTERS: Final = (
    Metric("slowed_by_power_cap_percent", "%", "share", 25.0, "slowed_by_power_cap_seconds"),
    Metric("slowed_by_sync_boost_percent", "%", "share", 25.0, "slowed_by_sync_boost_seconds"),
    Metric("slowed_by_sw_thermal_percent", "%", "share", 5.0, "slowed_by_sw_thermal_seconds"),
    Metric("slowed_by_hw_thermal_percent", "%", "share", 1.0, "slowed_by_hw_thermal_seconds"),
    Metric(
        "slowed_by_hw_power_brake_percent", "%", "share", 1.0, "slowed_by_hw_power_brake_seconds"
    ),
    Metric("ecc_corrected", "", "count", 10.0, "ecc_dram_corrected"),
    Metric("ecc_uncorrected", "", "count", 1.0, "ecc_dram_uncorrected"),
    Metric("pcie_replays", "", "count", 100.0, "pcie_replays"),
    Metric("nvlink_errors", "", "count", 1.0, "links"),
)

METRICS: Final[dict[str, Metric]] = {metric.name: metric for metric in (*LEVELS, *COUNTERS)}


def levels(gpu: Gpu) -> list[float | None]:
    """What is read of a GPU now, in the order of `LEVELS`."""
    return [
        gpu.temperature_celsius,
        gpu.memory_temperature_celsius,
        gpu.power_draw_watts,
        gpu.clock_sm_mhz,
        gpu.clock_memory_mhz,
        gpu.utilization_gpu_percent,
        gpu.utilization_memory_percent,
        gpu.memory_used_bytes,
    ]


Parts = tuple[float | None, ...]
"""Where the counters of one metric stand, each at its place; None: not to be read now."""


def counters(vitals: Vitals) -> tuple[Parts, ...]:
    """Where a GPU's counters stand, in the order of `COUNTERS`: seconds, or errors."""
    return (
        (vitals.slowed_by_power_cap_seconds,),
        (vitals.slowed_by_sync_boost_seconds,),
        (vitals.slowed_by_sw_thermal_seconds,),
        (vitals.slowed_by_hw_thermal_seconds,),
        (vitals.slowed_by_hw_power_brake_seconds,),
        (vitals.ecc_dram_corrected, vitals.ecc_sram_corrected),
        (vitals.ecc_dram_uncorrected, vitals.ecc_sram_uncorrected),
        (vitals.pcie_replays,),
        tuple(getattr(link, name) for link in vitals.links for name in _LINK_ERRORS),
    )


def increase(before: Parts, now: Parts) -> float | None:
    """By how much the counters have grown, as far as they can be compared; None: none of them can.
    One that is lower was set back, and what it has counted since may be older than `before`."""
    if len(before) != len(now):
        return None
    grown = [
        new - old
        for old, new in zip(before, now, strict=True)
        if old is not None and new is not None and new >= old
    ]
    return sum(grown) if grown else None
