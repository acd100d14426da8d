"""Timelines for a model's or a person's eye: what happened, then what changed, then figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from mcp_gpu.tools.moments import moment
from mcp_gpu.tools.spans import clipped, counted
from mcp_gpu.tools.sparkline import sparkline
from mcp_gpu.tools.timeline_model import (
    Change,
    GpuTimeline,
    NodeTimeline,
    Statistics,
    TimelineEvent,
)
from mcp_gpu.tools.xids import within

__all__ = [
    "ago",
    "change_level",
    "change_words",
    "event_words",
    "late_words",
    "node_lines",
    "node_text",
]

TEXT_CHARS: Final = 8_000
"""The text of one node is never longer."""

LINE_CHARS: Final = 400

CHANGES_TOLD: Final = 24
"""Of all GPUs of a node."""

ALIKE_TOLD: Final = 8
"""Of those the changes of one metric."""

EVENTS_TOLD: Final = 12

LATE: Final = 0.05
"""Share of the time; readings that begin later than that after the stretch are told as such."""

DRAWN: Final = 60
"""Points of a series drawn in a line; of more only the structured content has them."""

_GIB: Final = float(1 << 30)


def ago(seconds: float) -> str:
    """`12 s ago`, `34 min ago`, `5.2 h ago`."""
    if seconds < 120:
        return f"{seconds:.0f} s ago"
    return f"{seconds / 60:.0f} min ago" if seconds < 7200 else f"{seconds / 3600:.1f} h ago"


def change_words(change: Change) -> str:
    """`clock_sm_mhz 1980 -> 1200 MHz 34 min ago`."""
    when = ago(change.seconds_ago)
    if change.before is None:
        return f"{change.metric} {change.after:.0f} came, the first {when}"
    return f"{change.metric} {change_level(change.before, change.after, change.unit)} {when}"


def change_level(before: float | None, after: float | None, unit: str) -> str:
    """`1980 -> 1200 MHz`; a question mark for what is not known."""
    told = ("?" if each is None else _figure(each, unit) for each in (before, after))
    return f"{' -> '.join(told)}{_unit(unit)}"


def event_words(event: TimelineEvent) -> str:
    """`34 min ago GPU 3: slowed by hw_slowdown (12 times, the last 2 min ago)`."""
    whose = "node" if event.gpu_index is None else f"GPU {event.gpu_index}"
    often = f" ({event.count} times, the last {ago(event.last_seconds_ago)})"
    return f"{ago(event.seconds_ago)} {whose}: {event.text}{often if event.count > 1 else ''}"


def node_text(found: NodeTimeline) -> str:
    """One node as text."""
    return "\n".join(within(node_lines(found), TEXT_CHARS, LINE_CHARS))


def node_lines(found: NodeTimeline) -> Iterator[str]:
    """One node: what happened, what changed, and figures."""
    yield f"{found.node}: {found.since} to {found.until}, {counted(len(found.gpus), 'GPU')}"
    if found.simulated:
        yield "SIMULATED: no real hardware stands behind these figures."
    if found.message is not None:
        yield f"! {found.message}"
    if found.unsaved:
        yield f"! Would not outlive the agent: {found.unsaved}"
    late = late_words(found)
    if late:
        yield f"! {late}"
    for event in found.events[:EVENTS_TOLD]:
        yield f"EVENT {event_words(event)}"
    left = len(found.events) - EVENTS_TOLD + found.events_omitted
    if left > 0:
        yield f"{counted(left, 'more event')}, lighter or older"
    yield from _changes(found.gpus)
    for gpu in found.gpus:
        drawn = len(found.gpus) == 1 or gpu.series
        yield from _gpu(gpu, _before(gpu, found)) if drawn else _briefly(gpu, _before(gpu, found))


def _changes(gpus: Sequence[GpuTimeline]) -> Iterator[str]:
    every = [(gpu, change) for gpu in gpus for change in gpu.changes]
    every.sort(key=lambda each: (-each[1].weight, each[0].gpu_index))
    alike: Counter[str] = Counter()
    told = 0
    for gpu, change in every:
        alike[change.metric] += 1
        if alike[change.metric] > ALIKE_TOLD or told == CHANGES_TOLD:
            continue
        told += 1
        yield f"CHANGED GPU {gpu.gpu_index} {change_words(change)}"
    left = len(every) - told + sum(gpu.changes_omitted for gpu in gpus)
    if left > 0:
        yield f"{counted(left, 'more change')}, smaller ones"
    blind = [gpu for gpu in gpus if gpu.unavailable and not (gpu.statistics or gpu.changes)]
    if not every and len(blind) < len(gpus):
        yield "Nothing changed by as much as is worth telling."


def late_words(found: NodeTimeline) -> str:
    """That readings begin long after the stretch does; empty: they do not."""
    known = [gpu for gpu in found.gpus if gpu.recorded_since is not None]
    shares = [_before(gpu, found) for gpu in known]
    if not shares or min(shares) < LATE:
        return ""
    first = min(gpu.recorded_since or "" for gpu in known)
    return (
        f"Recorded since {first}: of the {100 * min(shares):.0f} % of the time before, no reading"
    )


def _before(gpu: GpuTimeline, found: NodeTimeline) -> float:
    """What share of the stretch had passed when the GPU gave its first reading in it."""
    since, first, until = (
        None if each is None else moment(each)
        for each in (found.since, gpu.recorded_since, found.until)
    )
    if since is None or first is None or until is None or until <= since:
        return 0.0
    return min(max((first - since) / (until - since), 0.0), 1.0)


def _briefly(gpu: GpuTimeline, before: float) -> Iterator[str]:
    """One of several."""
    if gpu.statistics:
        figures = "; ".join(_statistics(each, before) for each in gpu.statistics)
        yield clipped(f"GPU {gpu.gpu_index}: {figures}", LINE_CHARS)
    if gpu.unavailable and not gpu.statistics:
        yield clipped(f"GPU {gpu.gpu_index} unknown: {_reasons(gpu.unavailable)}", LINE_CHARS)


def _gpu(gpu: GpuTimeline, before: float) -> Iterator[str]:
    if gpu.statistics:
        slowed = ", ".join(gpu.throttle_reasons or ())
        now = f"  slowed now by {slowed}" if slowed else ""
        yield f"GPU {gpu.gpu_index}  {gpu.name or '?'}  {gpu.uuid or 'UUID unknown'}{now}"
    drawn = {series.metric: series.values for series in gpu.series}
    for each in gpu.statistics:
        yield f"  {_statistics(each, before)}{_drawn(drawn.get(each.metric, ()))}"
    if gpu.unavailable:
        yield clipped(f"GPU {gpu.gpu_index} unknown: {_reasons(gpu.unavailable)}", LINE_CHARS)


def _drawn(values: Sequence[float | None]) -> str:
    return f"  {sparkline(values)}" if 0 < len(values) <= DRAWN else ""


def _statistics(each: Statistics, before: float) -> str:
    """Args: before: share of the time that is known to lie before the first reading."""
    unknown = f"; {100 * each.unknown_share:.0f} % of the time unknown"
    told = before >= LATE and each.unknown_share < before + LATE
    tail = unknown if each.unknown_share >= 0.005 and not told else ""
    if each.total is not None:
        return f"{each.metric} +{each.total:.0f}{tail}"
    low, high, mean, p95, last = (
        "?" if value is None else _figure(value, each.unit)
        for value in (each.min, each.max, each.mean, each.p95, each.last)
    )
    unit = _unit(each.unit)
    return f"{each.metric} {low} to {high}{unit}, mean {mean}, p95 {p95}, last {last}{tail}"


def _reasons(unavailable: dict[str, str]) -> str:
    alike: dict[str, list[str]] = {}
    for metric, reason in unavailable.items():
        alike.setdefault(reason, []).append(metric)
    return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in alike.items())


def _figure(value: float, unit: str) -> str:
    return f"{value / _GIB:.4g}" if unit == "B" else f"{value:.4g}"


def _unit(unit: str) -> str:
    return " GiB" if unit == "B" else f" {unit}" if unit else ""
