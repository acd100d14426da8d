"""A node's timeline as moments of an incident, and its GPUs' readings before and after one."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

from mcp_gpu.gpu.health.model import Severity
from mcp_gpu.gpu.xid.report import XidGroup, utc
from mcp_gpu.tools.timeline_model import (
    Change,
    GpuTimeline,
    MetricName,
    Series,
    TimelineEvent,
)
from mcp_gpu.tools.timeline_text import change_level
from mcp_gpu.workloads.incident import xids
from mcp_gpu.workloads.incident.model import Level, Seen, Snapshot, told

__all__ = ["METRICS", "POINTS", "SPAN_SECONDS", "of_changes", "of_events", "snapshots"]

SPAN_SECONDS: Final = 300.0
"""A snapshot is the mean of so long before T+0, and of so long from it on."""

POINTS: Final = 20
"""In both together."""

METRICS: Final[tuple[MetricName, ...]] = (
    "temperature_celsius",
    "power_draw_watts",
    "clock_sm_mhz",
    "utilization_gpu_percent",
    "memory_used_bytes",
    "ecc_corrected",
    "ecc_uncorrected",
    "pcie_replays",
    "nvlink_errors",
)

_XID: Final = re.compile(r"(SXid|Xid) ([0-9]{1,5})\b")


def of_events(events: Iterable[TimelineEvent], groups: Sequence[XidGroup]) -> Iterator[Seen]:
    """What the agent noted. Xids are judged with the whole of the node's."""
    for event in events:
        key, severity = _judged(event, groups)
        text = event.text
        if event.count > 1:
            last = xids.unix(event.at) + event.seconds_ago - event.last_seconds_ago
            text += f" (x{event.count}, the last {utc(last)})"
        yield Seen(
            at=xids.unix(event.at),
            severity=severity,
            source="xid" if event.kind == "xid" else "gpu",
            key=key,
            text=told(text),
            gpu_index=event.gpu_index,
        )


def _judged(event: TimelineEvent, groups: Sequence[XidGroup]) -> tuple[str, Severity]:
    """What it is called, whoever tells of it, and how bad it is."""
    named = _XID.match(event.text) if event.kind == "xid" else None
    if named is not None:
        kind, code = named[1].lower(), int(named[2])
        for group in groups:
            alike = None in (event.gpu_index, group.gpu_index) or event.gpu_index == group.gpu_index
            if (group.kind, group.code) == (kind, code) and alike:
                return xids.key(kind, code), xids.severity(group)
        return xids.key(kind, code), event.severity
    if event.kind == "verdict":
        verdict = event.text.split(" ", 1)[0].rstrip(",")
        return f"verdict {verdict}", event.severity
    return event.kind, event.severity


def of_changes(gpus: Iterable[GpuTimeline]) -> Iterator[Seen]:
    """Readings that changed."""
    for gpu in gpus:
        for change in gpu.changes:
            lost = change.metric == "ecc_uncorrected"
            yield Seen(
                at=xids.unix(change.at),
                severity="critical" if lost else "info",
                source="telemetry",
                key=change.metric,
                text=told(_words(change)),
                gpu_index=gpu.gpu_index,
            )


def _words(change: Change) -> str:
    if change.before is None:
        return f"{change.metric}: {change.after:.0f} came, this the first"
    return f"{change.metric} {change_level(change.before, change.after, change.unit)}"


def snapshots(
    gpus: Iterable[GpuTimeline], concerned: Collection[int], zero: float, until: float
) -> Iterator[Snapshot]:
    """The GPUs concerned before and after T+0.

    Args:
        zero: T+0 in Unix seconds.
        until: when the series end.
    """
    for gpu in gpus:
        if gpu.gpu_index in concerned and gpu.series:
            yield Snapshot(
                gpu_index=gpu.gpu_index,
                before_seconds=SPAN_SECONDS,
                after_seconds=max(until - zero, 0.0),
                levels=tuple(_level(series, zero) for series in gpu.series),
            )


def _level(series: Series, zero: float) -> Level:
    begin, step = xids.unix(series.start), series.step_seconds
    sides: tuple[list[float], list[float]] = ([], [])
    for place, value in enumerate(series.values):
        if value is not None:
            # What began before T+0 and ends after it has something of both: it counts as after.
            sides[begin + (place + 1) * step > zero].append(value)
    counted = not series.min
    before, after = (_mean(side, counted=counted) for side in sides)
    return Level(metric=series.metric, unit=series.unit, before=before, after=after)


def _mean(values: Sequence[float], *, counted: bool) -> float | None:
    if not values:
        return None
    return sum(values) if counted else float(f"{sum(values) / len(values):.4g}")
