"""The report of an incident as text to paste: Markdown whose words are all within code blocks,
where a stranger's can be no link, no picture and no heading."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from mcp_gpu.tools.explain_failure_text import fact_line, gap_line, headline, whose
from mcp_gpu.tools.spans import clipped, counted, numbers
from mcp_gpu.tools.timeline_text import change_level
from mcp_gpu.workloads.failure.model import Explanation
from mcp_gpu.workloads.incident.incidents import offset
from mcp_gpu.workloads.incident.model import AffectedPod, IncidentReport, Moment, Snapshot

__all__ = ["TEXT_CHARS", "report_text"]

TEXT_CHARS: Final = 8_000
"""The text is never longer: what the parts may take, their headings and the longest id."""

LINE_CHARS: Final = 320

_ROOM: Final = 40
"""For the line that says how much of a part is left out."""

Part = tuple[str, Sequence[str], int]
"""A heading, its lines, and the characters that they may take."""


def report_text(found: IncidentReport) -> str:
    """The report, each part cut to its share."""
    return "\n\n".join(_blocks(found))


def _blocks(found: IncidentReport) -> Iterator[str]:
    none = "### No incident of this pod" if found.pod else "### No incident"
    yield f"### Incident {found.incident_id}".rstrip() if found.began else none
    for heading, lines, room in _parts(found):
        kept = list(_within(lines, room))
        if kept:
            block = "\n".join(("```text", *kept, "```"))
            yield f"#### {heading}\n{block}" if heading else block


def _within(lines: Sequence[str], room: int) -> Iterator[str]:
    for place, line in enumerate(lines):
        short = clipped(line, LINE_CHARS)
        room -= len(short) + 1
        if room < _ROOM:
            yield f"and {counted(len(lines) - place, 'more line')}"
            return
        yield short


def _parts(found: IncidentReport) -> Iterator[Part]:
    zero = f" (T+0 is {found.began})" if found.began else " of the node" if found.pod else ""
    yield "", list(_head(found)), 1_300
    yield f"Timeline{zero}", list(_timeline(found)), 2_100
    yield "Xids", list(_xids(found)), 600
    yield "Affected pods", list(_pods(found)), 500
    yield "GPUs before and after T+0", [_snapshot(each) for each in found.snapshots], 500
    if found.explanation is not None:
        yield "Why the pod failed", list(_why(found.explanation)), 800
    now = [f"{each.severity} {each.code}: {each.title}" for each in found.now]
    yield "GPU health now", now, 300
    others = [each for each in found.incidents if each.incident_id != found.incident_id]
    yield "Other incidents", [f"{each.incident_id}  {each.title}" for each in others], 300
    yield "Not known", list(map(gap_line, found.gaps)), 500


def _head(found: IncidentReport) -> Iterator[str]:
    yield f"{found.severity.upper()}: {found.title}" if found.began else found.title
    if found.simulated:
        yield "SIMULATED: no real hardware stands behind some or all of this."
    if found.came_first:
        ended = f", the last went wrong {found.ended}" if found.ended != found.began else ""
        yield f"Began {found.began}{ended}"
        yield f"Came first: {found.came_first}"
    yield from (f"Followed:   {each}" for each in found.followed[:_FOLLOWED])
    left = len(found.followed) - _FOLLOWED + found.followed_omitted
    if left > 0:
        yield f"Followed:   {left} more; see the timeline"
    yield f"First:      {found.first_step}"


_FOLLOWED: Final = 3


def _timeline(found: IncidentReport) -> Iterator[str]:
    """What went wrong, whatever room is left for the rest; by time."""
    chosen = sorted(
        found.timeline, key=lambda each: (each.severity == "info", abs(each.offset_seconds))
    )[:_TOLD]
    for each in found.timeline:
        if each in chosen:
            yield _moment(each, relative=found.began is not None)
    left = len(found.timeline) - len(chosen) + found.timeline_omitted
    if left > 0:
        yield f"{counted(left, 'more moment')} in the structured content"


_TOLD: Final = 24


def _moment(each: Moment, *, relative: bool) -> str:
    mark = "!" if each.severity != "info" else " "
    when = f"{offset(each.offset_seconds):>10} " if relative else ""
    about = "" if each.gpu_index is None else f"GPU {each.gpu_index}: "
    about = f"pod {each.pod}: " if each.pod else about
    return clipped(f"{mark}{when}{each.at[11:]} {about}{each.text}", 200)


def _xids(found: IncidentReport) -> Iterator[str]:
    for each in found.xids:
        noun = "SXid" if each.kind == "sxid" else "Xid"
        times = f" x{each.count}" if each.count > 1 else ""
        role = "follows from another" if each.follows else each.action
        yield f"{each.device} {noun} {each.code}{times} {each.name} ({role}): {each.explanation}"
    yield from found.chains


def _pods(found: IncidentReport) -> Iterator[str]:
    concerned = [each for each in found.affected_pods if each.concerned is not False]
    yield from map(_pod, concerned)
    others = len(found.affected_pods) - len(concerned) + found.affected_pods_omitted
    if others:
        yield f"{counted(others, 'more pod')} with GPUs of the node, not concerned"


def _pod(each: AffectedPod) -> str:
    held = f" GPU {numbers(each.gpus)}" if each.gpus else ""
    unsure = "" if each.concerned else " (not known whether it is concerned)"
    return f"{each.namespace}/{each.pod}{held}: {each.state}{unsure}"


def _snapshot(each: Snapshot) -> str:
    levels = [
        f"{level.metric} {change_level(level.before, level.after, level.unit)}"
        for level in each.levels
        if level.before is not None or level.after is not None
        if level.unit or level.before or level.after  # of errors only those that came
    ]
    return f"GPU {each.gpu_index}: {', '.join(levels) or 'no readings'}"


def _why(found: Explanation) -> Iterator[str]:
    yield headline(found)
    yield from whose(found)
    yield f"First: {found.first_step}"
    yield from map(fact_line, found.evidence[:4])
