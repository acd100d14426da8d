"""The health of a fleet for a model's or a person's eye: what is wrong first, and never long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mcp_gpu.fleet.model import NodeFailure
from mcp_gpu.tools.failures import failure_lines
from mcp_gpu.tools.fleet_health_model import FleetHealth, FleetNodeHealth
from mcp_gpu.tools.health import gpu_lines
from mcp_gpu.tools.health_groups import Group, groups, unexplained
from mcp_gpu.tools.health_model import worst
from mcp_gpu.tools.spans import clipped, counted, spans
from mcp_gpu.tools.ways import ways_line

__all__ = ["gpus_line", "lines", "nodes_line", "unknown_lines"]

TEXT_CHARS = 6_000
"""Room for findings. With all that stands around them the text stays under 8,000 characters."""

FULL_TEXT_CHARS = 30_000
"""The same, and for the readings of single GPUs, with detail full."""

LINE_CHARS = 400
"""Length of one line about a finding."""

PLACES_CHARS = 900
"""Length of the one that names nodes."""

BRIEF_LINES = 8
"""Findings told by name and place alone where room is short; the rest are counted."""

BRIEF_CHARS = 160

REASONS = 4
"""Reasons told why nodes are unknown."""

GAPS = 3
"""Things told that were not checked."""

GAP_CHARS = 160


def nodes_line(told: FleetHealth) -> str:
    """`1000 nodes: 3 failed, 997 healthy`."""
    nodes = told.nodes_by_verdict
    return f"{counted(nodes.count)}: {nodes}"


def gpus_line(told: FleetHealth) -> str:
    """`8000 GPUs: 3 failed, 7997 healthy`, of the nodes that answered."""
    gpus = told.gpus_by_verdict
    return f"{counted(gpus.count, 'GPU')}: {gpus}" if gpus.count else "no GPUs known"


def lines(
    told: FleetHealth,
    nodes: Sequence[FleetNodeHealth],
    failures: Sequence[NodeFailure],
    *,
    severity: str,
    full: bool,
) -> Iterator[str]:
    """The text.

    Args:
        nodes: those to speak of; more than are listed in `told` on a first page.
        failures: nodes without an answer to name.
        severity: the least severe findings that were asked for.
        full: whether single GPUs are told.
    """
    yield f"{told.verdict.upper()}: {nodes_line(told)}; {gpus_line(told)}"
    if told.simulated:
        yield "SIMULATED: no real hardware stands behind some or all of these figures."
    if told.coverage.said_of_discovery:
        yield told.coverage.said_of_discovery
    room = FULL_TEXT_CHARS if full else TEXT_CHARS
    found = list(_within(groups(nodes), room))
    yield from found
    yield from unknown_lines(nodes)
    yield from failure_lines(told.failures_by_reason, failures)
    if full:
        yield from _single_gpus(told.nodes, room - sum(map(len, found)))
    if told.findings_hidden:
        hidden = counted(told.findings_hidden, "finding")
        yield f'{hidden} less severe than {severity} not told: ask with severity "info".'
    yield from _gap_lines(told)
    if told.passed_over:
        yield ways_line(told, see="check_connectivity")
    if told.next_cursor is not None:
        omitted = counted(told.nodes_omitted, "more node")
        yield f'{omitted} in detail: call again with cursor "{told.next_cursor}".'


def _gap_lines(told: FleetHealth) -> Iterator[str]:
    for gap in told.gaps[:GAPS]:
        on = "" if gap.nodes == told.coverage.nodes_answered else f" on {counted(gap.nodes)}"
        what = ", ".join(gap.what)
        yield clipped(f"Not checked{on}: {what}: {gap.why}", GAP_CHARS)
    left = len(told.gaps) - GAPS + told.gaps_omitted
    if left > 0:
        yield f"Not checked: {left} more in the structured content."


def _within(found: Sequence[Group], room: int) -> Iterator[str]:
    """In full as long as there is room, then by name and place alone, then counted."""
    for position, group in enumerate(found):
        block = list(_group(group))
        room -= sum(len(line) + 1 for line in block)
        if room < 0 and position:
            yield from _in_brief(found[position:])
            return
        yield from block


def _group(group: Group) -> Iterator[str]:
    first = group.finding
    size = f"{group.size}; " if group.size else ""
    sure = f"({size}{first.confidence} confidence: {first.source})"
    yield clipped(f"{first.severity.upper()} {first.code}: {group.title} {sure}", LINE_CHARS)
    yield clipped(f"  on {group.places}", PLACES_CHARS)
    for seen in group.seen:
        yield clipped(f"  seen: {seen}", LINE_CHARS)
    yield clipped(f"  do: {group.do}", LINE_CHARS)


def _in_brief(found: Sequence[Group]) -> Iterator[str]:
    for group in found[:BRIEF_LINES]:
        first = group.finding
        text = f"{first.severity.upper()} {first.code}: {first.action}: on {group.places}"
        yield clipped(text, BRIEF_CHARS)
    left = found[BRIEF_LINES:]
    if left:
        nodes = {node for group in left for node in group.nodes}
        kinds = counted(len(left), "more kind")
        yield f"{kinds} of findings on {counted(len(nodes))}: ask for fewer nodes, or for critical."


def unknown_lines(nodes: Sequence[FleetNodeHealth]) -> Iterator[str]:
    """Why nodes are not healthy of which no finding is told, most of them unknown."""
    found = unexplained(nodes)
    verdicts = {node.node: node.verdict for node in nodes}
    for each in found[:REASONS]:
        verdict = worst(verdicts[node] for node in each.nodes).upper()
        yield clipped(f"{verdict} {spans(each.nodes)}: {each.why}", LINE_CHARS)
    left = sum(len(each.nodes) for each in found[REASONS:])
    if left:
        yield f"{counted(left, 'more node')} not healthy for other reasons"


def _single_gpus(nodes: Iterable[FleetNodeHealth], room: int) -> Iterator[str]:
    left = 0
    for node in nodes:
        block = [f"{node.node}: {node.verdict.upper()}  via {node.via}", *gpu_lines(node)]
        room -= sum(len(line) + 1 for line in block)
        if room < 0:
            left += 1
        else:
            yield from block
    if left:
        yield f"{counted(left, 'more node')} in the structured content."
