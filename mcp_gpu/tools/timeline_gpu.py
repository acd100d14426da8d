"""One GPU of a timeline: its changes, statistics and series from the recorder's cells."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mcp_gpu.gpu.model import Gpu
from mcp_gpu.gpu.recorder.figures import Summary, buckets, known, summary
from mcp_gpu.gpu.recorder.metrics import METRICS, Metric
from mcp_gpu.gpu.recorder.ring import Cells
from mcp_gpu.gpu.recorder.shifts import shifts
from mcp_gpu.gpu.vitals import Vitals
from mcp_gpu.gpu.xid.report import utc
from mcp_gpu.tools.timeline_model import Change, GpuTimeline, Series, Statistics

if TYPE_CHECKING:
    from mcp_gpu.gpu.recorder.recorder import Recorder

__all__ = ["Subject", "Wanted", "gpu_timeline"]

CHANGES_TOLD: Final = 8
"""Of one GPU; the rest are counted."""

_DIGITS: Final = 4
"""Of levels: more than sensors have."""

MOST_WEIGHT: Final = 500.0
"""Of one change, be it ever so large: an event that is critical weighs more."""

MEMORY: Final = "memory_used_bytes"

MEMORY_WEIGHT: Final = 10.0
"""The most of a change of memory. Jobs that begin and end are no trouble: a warning weighs more."""

MEMORY_TOLD: Final = 2
"""Changes of one GPU's memory that are told; the rest are counted."""

NO_READING: Final = "no reading in this stretch"


@dataclass(frozen=True, slots=True)
class Subject:
    """A GPU that there is something to tell of."""

    index: int
    uuid: str | None
    name: str | None
    recorded: bool
    """Whether there are readings of it."""
    now: Gpu | None
    """What is known of it now, as the next; None: it is gone."""
    vitals: Vitals | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be told of each GPU."""

    since: float
    """Unix seconds, as the next two."""
    until: float
    now: float
    metrics: Sequence[str]
    drawn: Sequence[str]
    """Those of them to make series of."""
    points: int
    """Of each series, at most."""
    figured: Collection[str]
    """Those to make statistics of."""


def gpu_timeline(recorder: Recorder, gpu: Subject, wanted: Wanted) -> GpuTimeline:
    """What a GPU has done."""
    changes: list[Change] = []
    omitted = 0
    firsts: list[float] = []
    figures: list[Statistics] = []
    series: list[Series] = []
    unavailable: dict[str, str] = {}
    for metric in (METRICS[each] for each in wanted.metrics):
        cells = None
        if gpu.recorded and gpu.uuid is not None:
            cells = recorder.series(gpu.uuid, metric.name, wanted.since, wanted.until)
        found = None if cells is None else summary(cells)
        if cells is None or found is None:
            unavailable[metric.name] = _why(metric, gpu)
            continue
        firsts.append(cells.start + known(cells.mean)[0][0] * cells.step)
        changed = _changes(metric, cells, found, wanted.now)
        if metric.name == MEMORY:
            changed.sort(key=lambda change: -abs(change.after - (change.before or 0.0)))
            omitted += len(changed[MEMORY_TOLD:])
            del changed[MEMORY_TOLD:]
        changes += changed
        if metric.name in wanted.figured:
            figures.append(_statistics(metric, found))
        if metric.name in wanted.drawn:
            series.append(_series(metric, cells, wanted.points))
    changes.sort(key=lambda change: (-change.weight, change.metric, change.seconds_ago))
    return GpuTimeline(
        gpu_index=gpu.index,
        uuid=gpu.uuid,
        name=gpu.name,
        recorded_since=utc(max(min(firsts), wanted.since)) if firsts else None,
        changes=tuple(changes[:CHANGES_TOLD]),
        changes_omitted=omitted + max(len(changes) - CHANGES_TOLD, 0),
        throttle_reasons=None if gpu.now is None else gpu.now.throttle_reasons,
        statistics=tuple(figures),
        series=tuple(series),
        unavailable=unavailable,
    )


def _why(metric: Metric, gpu: Subject) -> str:
    """What the GPU says of it now, if it does not give it."""
    for readings in (gpu.now, gpu.vitals):
        if readings is not None and metric.field in readings.unavailable:
            return readings.unavailable[metric.field]
    return NO_READING


def _changes(metric: Metric, cells: Cells, found: Summary, now: float) -> list[Change]:
    values = known(cells.mean)
    if metric.kind == "count":
        if found.total < metric.least:
            return []
        first = next(place for place, value in values if value)
        return [_change(metric, cells, first, None, found.total, now)]
    return [
        _change(metric, cells, values[shift.place][0], shift.before, shift.after, now)
        for shift in shifts([value for _, value in values], metric.least)
    ]


def _change(
    metric: Metric, cells: Cells, place: int, before: float | None, after: float, now: float
) -> Change:
    at = cells.start + place * cells.step
    size = after if before is None else abs(after - before)
    return Change(
        metric=metric.name,
        unit=metric.unit,
        kind="errors" if before is None else "shift",
        at=utc(at),
        seconds_ago=round(max(now - at, 0.0), 1),
        before=None if before is None else _rounded(metric, before),
        after=_rounded(metric, after),
        weight=round(min(size / metric.least, _most(metric)), 1),
    )


def _most(metric: Metric) -> float:
    return MEMORY_WEIGHT if metric.name == MEMORY else MOST_WEIGHT


def _statistics(metric: Metric, found: Summary) -> Statistics:
    counted = metric.kind == "count"
    levels = {
        "min": found.low,
        "mean": found.mean,
        "max": found.high,
        "p95": found.p95,
        "last": found.last,
    }
    return Statistics(
        metric=metric.name,
        unit=metric.unit,
        **{name: None if counted else _rounded(metric, value) for name, value in levels.items()},
        total=_rounded(metric, found.total) if counted else None,
        unknown_share=round(found.unknown, 3),
    )


def _series(metric: Metric, cells: Cells, points: int) -> Series:
    counted = metric.kind == "count"
    drawn = buckets(cells, points, counted=counted)

    def rounded(values: Sequence[float | None]) -> tuple[float | None, ...]:
        return tuple(None if value is None else _rounded(metric, value) for value in values)

    return Series(
        metric=metric.name,
        unit=metric.unit,
        start=utc(drawn.start),
        step_seconds=drawn.step,
        values=rounded(drawn.mean),
        min=() if counted else rounded(drawn.low),
        max=() if counted else rounded(drawn.high),
    )


def _rounded(metric: Metric, value: float) -> float:
    return round(value) if metric.kind == "count" else float(f"{value:.{_DIGITS}g}")
