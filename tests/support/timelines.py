"""Pasts made by hand, and agents in this process that tell of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from mcp_gpu.gpu.model import Snapshot
from mcp_gpu.gpu.recorder.recorder import Recorder
from mcp_gpu.registry import Arguments
from mcp_gpu.tools.timeline_model import Change, GpuTimeline, NodeTimeline, TimelineArguments
from support.fleet import H100, Agent
from support.readings import T0, changed

__all__ = ["NOW", "TimelineAgent", "change", "node_timeline", "recorded"]

NOW = T0 + 3600.0
"""The present of an hour that was recorded."""

PERIOD = 10


def recorded(snapshot: Snapshot, at: Callable[[int], dict[str, Any]], gpu: int = 0) -> Recorder:
    """An hour up to `NOW`.

    Args:
        at: by seconds since its beginning what is read of the GPU then.
    """
    recorder = Recorder(fast_seconds=PERIOD)
    for second in range(0, 3600, PERIOD):
        when = {"fast_at": T0 + second, "slow_at": T0 + second - second % 30}
        recorder.take(changed(snapshot, gpu, **at(second)).model_copy(update=when), float(second))
    return recorder


def change(metric: str = "clock_sm_mhz", weight: float = 5.0, **changes: Any) -> Change:
    fields: dict[str, Any] = {
        "metric": metric,
        "unit": "MHz",
        "kind": "shift",
        "at": "2026-11-26T10:00:00Z",
        "seconds_ago": 600.0,
        "before": 1980.0,
        "after": 1200.0,
        "weight": weight,
    }
    return Change(**(fields | changes))


def node_timeline(node: str, *changes: Change, **other: Any) -> NodeTimeline:
    """A node of 8 GPUs of which number 3 has changed so."""

    def gpu(index: int) -> GpuTimeline:
        return GpuTimeline(
            gpu_index=index,
            uuid=f"GPU-{index}",
            name=H100,
            recorded_since="2026-11-26T09:10:00Z",
            changes=changes if index == 3 else (),
            changes_omitted=0,
            throttle_reasons=(),
            statistics=(),
            series=(),
            unavailable={},
        )

    fields: dict[str, Any] = {
        "node": node,
        "simulated": True,
        "message": None,
        "since": "2026-11-26T09:10:00Z",
        "until": "2026-11-26T10:10:00Z",
        "kept_hours": 24.0,
        "weight": max((each.weight for each in changes), default=0.0),
        "gpus": tuple(map(gpu, range(8))),
        "events": (),
        "events_omitted": 0,
    }
    return NodeTimeline(**(fields | other))


class TimelineAgent(Agent):
    """An agent that answers with a timeline."""

    def __init__(self, node: str, found: NodeTimeline, **changes: Any) -> None:
        settings: dict[str, Any] = {
            "tool": "get_gpu_timeline",
            "arguments": TimelineArguments,
            "result": NodeTimeline,
            "data": found,
        }
        super().__init__(node, **(settings | changes))

    def answer(self, arguments: Arguments) -> BaseModel:
        assert isinstance(arguments, TimelineArguments)
        return self.data
