"""`get_gpu_timeline` as a gateway serves it: one node closely, or where most changed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from pydantic import Field

from mcp_gpu.fleet.model import NodeFailure
from mcp_gpu.fleet.router import FanOut, Router
from mcp_gpu.registry import Answer, Call, Tool, ToolError
from mcp_gpu.tools.failures import failure_lines
from mcp_gpu.tools.fleet_answer import of_fleet, shared
from mcp_gpu.tools.fleet_arguments import FleetArguments, NodeName, asking
from mcp_gpu.tools.fleet_timeline_model import FleetNodeTimeline, FleetTimeline
from mcp_gpu.tools.pages import page
from mcp_gpu.tools.spans import counted
from mcp_gpu.tools.timeline import Stretch
from mcp_gpu.tools.timeline_model import NAME, GpuTimeline, NodeTimeline, TimelineArguments
from mcp_gpu.tools.ways import ways_line

__all__ = ["GatewayArguments", "gateway_tool"]

TEXT_CHARS: Final = 8_000
"""The text is never longer, however many nodes there are."""

NODES_TOLD: Final = 24
"""Nodes in the text of a summary."""

GPUS_LISTED: Final = 8
CHANGES_LISTED: Final = 3
EVENTS_LISTED: Final = 5
"""Of one node, and of one GPU, in a summary: those that changed most, and the gravest."""

WRONG_TOLD: Final = 3
"""Events that went wrong, in the text of one node of a summary."""


class GatewayArguments(FleetArguments, TimelineArguments):
    """What a gateway may be asked about the past of the fleet's GPUs."""

    node: NodeName | None = Field(
        default=None,
        description="One node, closely: with statistics, for a gpu with series. Default: where in "
        "the fleet most changed.",
    )


def gateway_tool(router: Router) -> Tool[GatewayArguments]:
    """The tool as a gateway serves it."""

    async def run(arguments: GatewayArguments, call: Call) -> Answer:
        Stretch.of(arguments, time.time())  # what is wrong with it is told at once
        if arguments.node is None:
            return await _summary(router, arguments, call)
        return await _closely(router, arguments, call)

    return Tool(
        name=NAME,
        title="Timeline of the fleet's GPUs",
        description=(
            "Say what NVIDIA GPUs have done over the last minutes or hours. With node: events, "
            "what changed and when, statistics; with gpu too series of temperature, power, clocks, "
            "utilization, memory, throttling and error counters. Without node: on which nodes "
            "most changed. Time without readings is told as unknown, never as 0."
        ),
        arguments=GatewayArguments,
        result=FleetTimeline,
        run=run,
    )


async def _closely(router: Router, arguments: GatewayArguments, call: Call) -> Answer:
    """One node, all that it tells."""
    if arguments.nodes is not None or arguments.cursor is not None:
        raise ToolError('"nodes" and "cursor" are for summaries: give them without "node".')
    assert arguments.node is not None
    found = await _ask(router, arguments, call, (arguments.node,), arguments.points)
    everything = _whole(found)
    lines = [] if everything.nodes else ["No timeline."]
    if everything.coverage.said_of_discovery:
        lines.append(everything.coverage.said_of_discovery)
    lines += failure_lines(everything.failures_by_reason, everything.failures)
    if everything.nodes:
        from mcp_gpu.tools.timeline_text import node_lines

        lines += node_lines(everything.nodes[0])
    return Answer(_within(lines), everything)


async def _summary(router: Router, arguments: GatewayArguments, call: Call) -> Answer:
    """The nodes where most changed."""
    if arguments.gpu is not None:
        raise ToolError('"gpu" is of one node: name that with "node".')
    start = _begin(arguments.cursor)
    found = await _ask(router, arguments, call, arguments.nodes, 0)
    everything = _whole(found)
    changed = [node for node in everything.nodes if node.weight > 0]
    told = page(
        everything.model_copy(
            update={"nodes_unchanged": len(everything.nodes) - len(changed), "nodes": ()}
        ),
        [node for node in changed if start is None or _order(node) > start],
        first=start is None,
        limit=arguments.limit,
        detail="summary",
        shortened=_shortened,
        cursor=lambda node: f"{node.weight!r} {node.node}",  # all its digits
    )
    lines = _lines(told, len(changed), everything.failures if start is None else ())
    return Answer(_within(lines), told)


async def _ask(
    router: Router,
    arguments: GatewayArguments,
    call: Call,
    nodes: Sequence[str] | None,
    points: int,
) -> FanOut[NodeTimeline]:
    asked: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in ("gpu", "window", "since", "until", "metrics")
        if getattr(arguments, name) is not None
    }
    with asking():
        return await router.fan_out(
            NAME, asked | {"points": points}, NodeTimeline, nodes=nodes, progress=call.progress
        )


def _whole(found: FanOut[NodeTimeline]) -> FleetTimeline:
    from mcp_gpu.tools.timeline_text import late_words

    nodes = sorted((of_fleet(FleetNodeTimeline, each) for each in found.answers), key=_order)
    return FleetTimeline(
        **shared(found),
        nodes_unchanged=0,
        nodes_recorded_late=sum(bool(late_words(node)) for node in nodes),
        nodes=tuple(nodes),
    )


def _order(node: FleetNodeTimeline) -> tuple[float, str]:
    return -node.weight, node.node


def _begin(cursor: str | None) -> tuple[float, str] | None:
    """Raises: ToolError: it is no cursor of this tool."""
    if cursor is None:
        return None
    weight, _, node = cursor.partition(" ")
    try:
        if node and math.isfinite(begin := float(weight)):
            return -begin, node
    except ValueError:
        pass
    raise ToolError(f'"cursor" of {NAME} must be the next_cursor of a page before.')


def _shortened(node: FleetNodeTimeline) -> FleetNodeTimeline:
    changed = sorted(
        (gpu for gpu in node.gpus if gpu.changes), key=lambda gpu: -gpu.changes[0].weight
    )
    left_out = len(node.events) - EVENTS_LISTED
    return node.model_copy(
        update={
            "gpus": tuple(map(_short_gpu, changed[:GPUS_LISTED])),
            "events": node.events[:EVENTS_LISTED],
            "events_omitted": node.events_omitted + max(left_out, 0),
        }
    )


def _short_gpu(gpu: GpuTimeline) -> GpuTimeline:
    left_out = max(len(gpu.changes) - CHANGES_LISTED, 0)
    return gpu.model_copy(
        update={
            "changes": gpu.changes[:CHANGES_LISTED],
            "changes_omitted": gpu.changes_omitted + left_out,
            "statistics": (),
            "series": (),
            "unavailable": {},
        }
    )


def _lines(told: FleetTimeline, changed: int, failures: Sequence[NodeFailure]) -> Iterator[str]:
    answered = f"{told.coverage.nodes_answered} of {counted(told.coverage.nodes_asked)} answered"
    yield f"{answered}: something changed on {changed}, most first"
    if told.simulated:
        yield "SIMULATED: no real hardware stands behind some or all of these figures."
    if told.coverage.said_of_discovery:
        yield told.coverage.said_of_discovery
    yield from failure_lines(told.failures_by_reason, failures)
    if told.nodes_recorded_late:
        late = counted(told.nodes_recorded_late)
        yield f"{late} recorded for a part of this time only: what was before is unknown."
    for node in told.nodes[:NODES_TOLD]:
        yield f"{node.node}: {'; '.join(_parts(node))}"
    left = len(told.nodes) - NODES_TOLD
    if left > 0:
        yield f"{counted(left, 'more node')} in the structured content."
    if told.passed_over:
        yield ways_line(told, see="check_connectivity")
    if told.next_cursor is not None:
        omitted = counted(told.nodes_omitted, "more node")
        yield f'{omitted}: call again with cursor "{told.next_cursor}".'
    if told.nodes:
        yield "Ask with node for statistics, with gpu too for series."


def _parts(node: FleetNodeTimeline) -> list[str]:
    """What went wrong, the greatest changes, and if there is room what else happened."""
    from mcp_gpu.tools.timeline_text import change_words, event_words

    every = [(gpu.gpu_index, change) for gpu in node.gpus for change in gpu.changes]
    every.sort(key=lambda each: -each[1].weight)
    changed = [f"GPU {index} {change_words(each)}" for index, each in every]
    wrong = [event_words(each) for each in node.events if each.severity != "info"]
    other = [event_words(each) for each in node.events if each.severity == "info"]
    parts = wrong[:WRONG_TOLD]
    parts += changed[: max(CHANGES_LISTED - len(parts), 1)]
    return parts + other[: max(CHANGES_LISTED - len(parts), 0)]


def _within(lines: Iterator[str] | Sequence[str]) -> str:
    from mcp_gpu.tools.xids import within

    return "\n".join(within(lines, TEXT_CHARS))
