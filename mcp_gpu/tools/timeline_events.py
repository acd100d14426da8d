"""What happened on a node, from the recorder and from the log of Xids, as a timeline tells it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mcp_gpu.gpu.model import Snapshot
from mcp_gpu.gpu.recorder.events import Event
from mcp_gpu.gpu.xid.catalogue import entry
from mcp_gpu.gpu.xid.line import bus_id
from mcp_gpu.gpu.xid.model import Burst
from mcp_gpu.gpu.xid.report import utc
from mcp_gpu.tools.timeline_model import TimelineEvent

__all__ = ["EVENTS_TOLD", "event_weight", "events"]

EVENTS_TOLD: Final = 60
"""Events in an answer; older ones are counted."""

_WEIGHTS: Final = {
    "gpu": 50.0,
    "nvml": 50.0,
    "action": 50.0,
    "xid": 20.0,
    "reset": 20.0,
    "verdict": 10.0,
    "slowed": 5.0,
    "driver": 5.0,
}
"""What an event is compared with changes of metrics by; others weigh 1. This project's choice."""


def event_weight(event: TimelineEvent) -> float:
    """How much an event says of a node beside changes of metrics."""
    return _WEIGHTS.get(event.kind, 1.0)


def events(
    recorded: Iterable[Event],
    bursts: Iterable[Burst],
    snapshot: Snapshot,
    *,
    until: float,
    now: float,
    uuid: str | None,
) -> list[TimelineEvent]:
    """All of them, newest first.

    Args:
        uuid: leave out those of other GPUs; None: of all.
    """
    indices = {gpu.uuid: gpu.index for gpu in snapshot.gpus if gpu.uuid}
    places = {bus_id(gpu.pci_bus_id): gpu for gpu in snapshot.gpus if gpu.pci_bus_id}
    found = [
        (
            each.last_at,
            TimelineEvent(
                kind=each.kind,
                at=utc(each.at),
                seconds_ago=_ago(each.at, now),
                last_seconds_ago=_ago(each.last_at, now),
                count=each.times,
                gpu_index=indices.get(each.uuid or "", each.gpu_index),
                text=each.text,
            ),
        )
        for each in recorded
        if uuid is None or each.uuid in (None, uuid)
    ]
    for burst in bursts:
        gpu = places.get(burst.first.bus_id)
        if burst.first.at > until or (uuid is not None and gpu is not None and gpu.uuid != uuid):
            continue
        found.append(
            (
                burst.last_at,
                TimelineEvent(
                    kind="xid",
                    at=utc(burst.first.at),
                    seconds_ago=_ago(burst.first.at, now),
                    last_seconds_ago=_ago(burst.last_at, now),
                    count=burst.count,
                    gpu_index=None if gpu is None else gpu.index,
                    text=_named(burst),
                ),
            )
        )
    return [event for _, event in sorted(found, key=lambda each: -each[0])]


def _named(burst: Burst) -> str:
    if burst.first.kind == "sxid":
        return f"SXid {burst.first.code}"
    known = entry(burst.first.code)
    return f"Xid {burst.first.code}" + (f": {known.name}" if known else "")


def _ago(at: float, now: float) -> float:
    return round(max(now - at, 0.0), 1)
