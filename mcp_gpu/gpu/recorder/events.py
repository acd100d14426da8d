"""What became otherwise on a node from one snapshot to the next: `Event`, kept in an `EventLog`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal, NamedTuple, Self, get_args

from mcp_gpu.gpu.model import Gpu, Snapshot
from mcp_gpu.gpu.recorder.moment import moment

__all__ = ["Event", "EventLog", "changes"]

Kind = Literal["nvml", "driver", "gpu", "reset", "slowed", "action", "verdict", "clock"]
"""nvml: whether it answers; driver: another version; gpu: lost, or answers again; reset: counters
began anew; slowed: why its clocks are lowered; action: what the driver asks for; verdict: its
health; clock: the node's was set."""

GAP_SECONDS: Final = 300.0
"""Events alike that follow each other within this are one, counted."""

MOST: Final = 512
"""Events kept; then the oldest of the most frequent kind goes."""

TEXT_CHARS: Final = 300


class Event(NamedTuple):
    """One of them. Times are seconds on the recorder's axis, or Unix seconds once it is told."""

    at: float
    kind: Kind
    text: str
    uuid: str | None = None
    """The GPU's; None: it is of the node as a whole."""
    gpu_index: int | None = None
    last_at: float = 0.0
    times: int = 1

    @classmethod
    def read(cls, told: dict[str, Any]) -> Self:
        """As `EventLog.packed` wrote it.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: it did not.
        """
        if told["kind"] not in get_args(Kind):
            raise ValueError("no kind of event")
        index = told["gpu_index"]
        return cls(
            at=moment(told["at"]),
            kind=told["kind"],
            text=str(told["text"])[:TEXT_CHARS],
            uuid=None if told["uuid"] is None else str(told["uuid"]),
            gpu_index=None if index is None else int(index),
            last_at=moment(told["last_at"]),
            times=int(told["times"]),
        )


class EventLog:
    """The latest, in bounded memory."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def add(self, event: Event) -> None:
        """Take one, not older than those before it."""
        event = event._replace(text=event.text[:TEXT_CHARS], last_at=event.at)
        for place in range(len(self._events) - 1, -1, -1):
            old = self._events[place]
            if event.at - old.last_at > GAP_SECONDS:
                continue
            if (old.kind, old.uuid, old.text) == (event.kind, event.uuid, event.text):
                self._events[place] = old._replace(last_at=event.at, times=old.times + 1)
                return
        self._events.append(event)
        if len(self._events) > MOST:
            ((kind, _),) = Counter(each.kind for each in self._events).most_common(1)
            del self._events[next(n for n, each in enumerate(self._events) if each.kind == kind)]

    def between(self, since: float, until: float) -> Iterator[Event]:
        """Those that happened or still went on in a stretch of the axis, by their beginning."""
        for event in self._events:
            if event.at <= until and event.last_at >= since:
                yield event

    def packed(self) -> list[dict[str, Any]]:
        """All of them, as JSON can hold them."""
        return [event._asdict() for event in self._events]

    def restore(self, events: Iterable[Event]) -> None:
        """Begin with these."""
        self._events = sorted(events, key=lambda event: event.at)[-MOST:]


def changes(before: Snapshot, now: Snapshot, at: float) -> Iterator[Event]:
    """What became otherwise between two snapshots."""
    yield from _node(before, now, at)
    whole = before.failure is None and now.failure is None
    former = {gpu.uuid: gpu for gpu in before.gpus if gpu.uuid}
    for gpu in now.gpus:
        if gpu.uuid in former:
            for kind, text in _gpu(former[gpu.uuid], gpu, whole=whole):
                yield Event(at, kind, text, gpu.uuid, gpu.index)
        elif gpu.uuid and former:
            yield Event(at, "gpu", "the GPU came", gpu.uuid, gpu.index)


def _node(before: Snapshot, now: Snapshot, at: float) -> Iterator[Event]:
    was = before.failure and before.failure.name
    if (before.state, was) != (now.state, now.failure and now.failure.name):
        if now.failure is not None:
            yield Event(at, "nvml", f"NVML {now.state}: {now.failure.message}")
        elif before.state != "starting":
            yield Event(at, "nvml", "NVML answers again")


def _gpu(before: Gpu, now: Gpu, *, whole: bool) -> Iterator[tuple[Kind, str]]:
    if before.state != now.state and whole:
        yield "gpu", "the GPU answers again" if now.state == "ok" else f"{now.state}: {now.error}"
    if (
        before.energy_joules is not None
        and now.energy_joules is not None
        and now.energy_joules < before.energy_joules
    ):
        yield "reset", "counters began anew: the GPU was reset, or the driver loaded anew"
    old, new = before.throttle_reasons, now.throttle_reasons
    if new is not None and set(new) != set(old or ()):
        yield "slowed", f"slowed by {', '.join(sorted(new))}" if new else "no longer slowed"
    asked, asks = before.recovery_action or "none", now.recovery_action
    if asks is not None and asks != asked:
        wish = "nothing any more" if asks == "none" else asks
        yield "action", f"the driver asks for {wish}"
