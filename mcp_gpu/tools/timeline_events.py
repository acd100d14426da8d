"""What happened on a node, from the recorder and from the log of Xids, as a timeline tells it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from mcp_gpu.gpu.health.model import SEVERITIES, Severity
from mcp_gpu.gpu.model import Snapshot
from mcp_gpu.gpu.recorder.events import Event
from mcp_gpu.gpu.xid.catalogue import entry
from mcp_gpu.gpu.xid.line import bus_id
from mcp_gpu.gpu.xid.model import Burst
from mcp_gpu.gpu.xid.report import utc
from mcp_gpu.tools.timeline_model import TimelineEvent

__all__ = ["EVENTS_TOLD", "event_severity", "event_weight", "events"]

EVENTS_TOLD: Final = 60
"""Events in an answer; lighter and older ones are counted."""

_WEIGHTS: Final[dict[Severity, float]] = {"critical": 1000.0, "warning": 20.0, "info": 2.0}
"""What an event is compared with changes of metrics by. This project's choice: nothing that a job
does to readings weighs as much as a GPU that is lost."""

_VERDICTS: Final[dict[str, Severity]] = {"failed": "critical", "degraded": "warning"}

_XID: Final = re.compile(r"Xid ([0-9]{1,5})\b")

_WELL: Final = ("the GPU answers again", "the GPU came", "NVML answers again")


def event_weight(event: TimelineEvent) -> float:
    """How much an event says of a node beside changes of metrics."""
    return _WEIGHTS[event.severity]


def event_severity(kind: str, text: str) -> Severity:
    """How bad it is by itself; of an Xid by its code."""
    match kind:
        case "xid":
            named = _XID.match(text)
            known = None if named is None else entry(int(named[1]))
            # Of some the code alone does not say.
            return "warning" if known is None or known.severity == "follow" else known.severity
        case "gpu" | "nvml":
            return "info" if text in _WELL else "critical"
        case "action":
            return "info" if text.endswith("nothing any more") else "critical"
        case "verdict":
            return _VERDICTS.get(text.split(" ", 1)[0].rstrip(","), "info")
        case "slowed":
            return "warning" if "slowed by hw_" in text else "info"
    return "info"


def events(
    recorded: Iterable[Event],
    bursts: Iterable[Burst],
    snapshot: Snapshot,
    *,
    until: float,
    now: float,
    uuid: str | None,
) -> list[TimelineEvent]:
    """All of them, the gravest first, then the newest.

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
                severity=event_severity(each.kind, each.text),
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
        text = _named(burst)
        found.append(
            (
                burst.last_at,
                TimelineEvent(
                    kind="xid",
                    severity=event_severity("xid", text),
                    at=utc(burst.first.at),
                    seconds_ago=_ago(burst.first.at, now),
                    last_seconds_ago=_ago(burst.last_at, now),
                    count=burst.count,
                    gpu_index=None if gpu is None else gpu.index,
                    text=text,
                ),
            )
        )
    found.sort(key=lambda each: (SEVERITIES.index(each[1].severity), -each[0]))
    return [event for _, event in found]


def _named(burst: Burst) -> str:
    if burst.first.kind == "sxid":
        return f"SXid {burst.first.code}"
    known = entry(burst.first.code)
    return f"Xid {burst.first.code}" + (f": {known.name}" if known else "")


def _ago(at: float, now: float) -> float:
    return round(max(now - at, 0.0), 1)
