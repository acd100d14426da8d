"""`get_gpu_timeline` as an agent serves it: what the GPUs of its own node have done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import anyio.to_thread

from mcp_gpu.registry import Answer, Call, Tool, ToolError
from mcp_gpu.tools.moments import moment, seconds
from mcp_gpu.tools.timeline_model import (
    MAIN,
    NAME,
    NodeTimeline,
    TimelineArguments,
)
from transports.text import quoted, visible

if TYPE_CHECKING:
    from mcp_gpu.gpu.collector import Collector
    from mcp_gpu.gpu.model import Snapshot
    from mcp_gpu.gpu.recorder.recorder import Recorder
    from mcp_gpu.node.watch import XidWatch
    from mcp_gpu.tools.timeline_gpu import Subject

__all__ = ["DEFAULT_WINDOW", "Stretch", "agent_tool"]

DEFAULT_WINDOW: Final = "1h"

MOST_POINTS: Final = 10_000
"""Points of all series together. A gateway takes no answer of more than 256 KiB."""

GPU_CHARS: Final = 60
"""How much is repeated of the name of a GPU that is none."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """From one moment to another, Unix seconds."""

    since: float
    until: float

    @classmethod
    def of(cls, arguments: TimelineArguments, now: float) -> Stretch:
        """The one that is asked for.

        Raises:
            ToolError: there is none such.
        """
        if arguments.window is not None and arguments.since is not None:
            raise ToolError('Give "window" or "since", not both.')
        until = None if arguments.until is None else moment(arguments.until)
        until = now if until is None else min(until, now)
        since = None if arguments.since is None else moment(arguments.since)
        if since is None:
            since = until - (seconds(arguments.window or DEFAULT_WINDOW) or 0)
        if since >= until:
            raise ToolError('"since" has to be before "until", and before now.')
        return cls(since, until)


def agent_tool(
    node: str,
    collector: Collector,
    recorder: Recorder,
    watch: XidWatch,
    *,
    clock: Callable[[], float] = time.time,
) -> Tool[TimelineArguments]:
    """The tool over one node. It waits for nothing: an NVML that hangs does not hold it up."""

    async def run(arguments: TimelineArguments, call: Call) -> Answer:
        from mcp_gpu.tools.timeline_text import node_text

        stretch = Stretch.of(arguments, clock())

        def look() -> NodeTimeline:
            return _answer(node, collector.snapshot, recorder, watch, arguments, stretch, clock())

        # On another thread: a day of many GPUs takes longer than others should wait.
        found = await anyio.to_thread.run_sync(look)
        return Answer(node_text(found), found)

    return Tool(
        name=NAME,
        title="Timeline of this node's GPUs",
        description=(
            "Say what this node's NVIDIA GPUs have done over the last minutes or hours: what "
            "changed and when (levels that shifted, errors that came), events (Xids, GPUs lost, "
            "clocks lowered, verdicts), statistics, and for one GPU series of temperature, power, "
            "clocks, utilization, memory, throttling and error counters. Time without readings is "
            "told as unknown, never as 0."
        ),
        arguments=TimelineArguments,
        result=NodeTimeline,
        run=run,
    )


def _answer(
    node: str,
    snapshot: Snapshot,
    recorder: Recorder,
    watch: XidWatch,
    arguments: TimelineArguments,
    stretch: Stretch,
    now: float,
) -> NodeTimeline:
    """Raises: ToolError: there is no such GPU, no such time, or it is too much at once."""
    from mcp_gpu.gpu.recorder.metrics import METRICS
    from mcp_gpu.gpu.xid.report import utc
    from mcp_gpu.tools.inventory import trouble
    from mcp_gpu.tools.timeline_events import EVENTS_TOLD, event_weight, events
    from mcp_gpu.tools.timeline_gpu import Wanted, gpu_timeline

    since = max(stretch.since, now - recorder.hours * 3600)
    if since >= stretch.until:
        raise ToolError(f"Readings are kept for {recorder.hours:g} hours: ask for a later time.")
    known = _subjects(snapshot, recorder)
    chosen = known if arguments.gpu is None else [_chosen(arguments.gpu, known)]
    closely = arguments.gpu is not None or arguments.metrics is not None
    drawn = (arguments.metrics or MAIN) if closely and arguments.points else ()
    points = len(chosen) * len(drawn) * arguments.points
    if points > MOST_POINTS:
        raise ToolError(
            f"{points:,} points of {len(chosen)} GPUs and {len(drawn)} metrics are more than "
            f"{MOST_POINTS:,}: name a gpu, fewer metrics or fewer points."
        )
    metrics: tuple[str, ...] = arguments.metrics or tuple(METRICS)
    figured = metrics if closely else MAIN
    wanted = Wanted(since, stretch.until, now, metrics, drawn, arguments.points, figured)
    gpus = tuple(gpu_timeline(recorder, gpu, wanted) for gpu in chosen)
    happened = events(
        recorder.events(since, stretch.until),
        watch.log.bursts(since=since),
        snapshot,
        until=stretch.until,
        now=now,
        uuid=None if arguments.gpu is None else chosen[0].uuid,
    )
    weights = [change.weight for gpu in gpus for change in gpu.changes]
    weights += map(event_weight, happened)
    return NodeTimeline(
        node=node,
        simulated=snapshot.simulated,
        message=trouble(snapshot),
        since=utc(since),
        until=utc(stretch.until),
        kept_hours=recorder.hours,
        unsaved=visible(recorder.unsaved),
        weight=max(weights, default=0.0),
        gpus=gpus,
        events=tuple(happened[:EVENTS_TOLD]),
        events_omitted=max(len(happened) - EVENTS_TOLD, 0),
    )


def _subjects(snapshot: Snapshot, recorder: Recorder) -> list[Subject]:
    """GPUs that are there, and those that were recorded and are gone, by index."""
    from mcp_gpu.tools.timeline_gpu import Subject

    recorded = {each.uuid: each for each in recorder.gpus()}
    vitals = {each.index: each for each in snapshot.vitals}
    found = []
    for gpu in snapshot.gpus:
        past = recorded.pop(gpu.uuid or "", None) is not None
        found.append(Subject(gpu.index, gpu.uuid, gpu.name, past, gpu, vitals.get(gpu.index)))
    found += [
        Subject(gone.gpu_index, gone.uuid, gone.name, True, None, None)
        for gone in recorded.values()
    ]
    return sorted(found, key=lambda gpu: (gpu.index, gpu.now is None))


def _chosen(asked: int | str, known: Sequence[Subject]) -> Subject:
    """Raises: ToolError: there is no such GPU."""
    name = str(asked)
    for gpu in known:  # of one index those that are there come first
        if name in {str(gpu.index), gpu.uuid}:
            return gpu
    names = [f"{gpu.index} ({gpu.uuid or 'UUID unknown'})" for gpu in known]
    raise ToolError(f"No GPU {quoted(name, GPU_CHARS)} here. Known: {', '.join(names) or 'none'}.")
