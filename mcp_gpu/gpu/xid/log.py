"""The Xids of one node, from all sources, in bounded memory: `XidLog`.

A driver in trouble may write hundreds of thousands of lines of one code, and the one line that
matters may stand among them. So events are kept as bursts of events alike, rare codes longest,
and what several sources tell of one event counts once.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from heapq import nsmallest
from typing import Final

from mcp_gpu.gpu.xid.model import Burst, Source, XidEvent

GAP_SECONDS: Final = 300.0
"""A burst goes on while the next event comes within this: the longest pause that Kubernetes makes
before it starts a crashed container again."""

BURST_SECONDS: Final = 600.0
"""A longer storm is several bursts, so that a question about the last hour has an answer."""

SAME_SECONDS: Final = 2.0
"""Sources tell an event's time differently by up to this."""

MAX_BURSTS: Final = 4096

SAMPLES: Final = 3
"""Events with different texts kept of one burst."""

TEXT_CHARS: Final = 300
"""Kept of an event's text, and of its line."""

PAIRED: Final = 64
"""Events of one burst whose times are kept, to tell whether another source tells of the same."""

BOUND_BYTES: Final = 20 << 20
"""All of it never takes more memory: 4,096 bursts of three samples with texts of full length.
With the driver's usual lines it is a third."""

_FATAL: Final = " Fatal "
"""The driver's own word in the text of an NVLink 5 error; the others are Nonfatal."""

_BITS: Final[dict[Source, int]] = {"nvml": 1, "kernel_log": 2, "journal": 4}

_Key = tuple[str, str, str, int]
"""Boot, bus id, kind and code: what events of one burst have in common."""


class XidLog:
    """Collects Xids. Any thread adds, any thread asks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bursts: dict[_Key, list[_Burst]] = {}
        """Each list by time."""
        self._count = 0
        self._added = 0
        self._dropped = 0

    @property
    def added(self) -> int:
        """How many events were ever added."""
        return self._added

    @property
    def dropped(self) -> int:
        """How many events had to be forgotten to stay in bounds."""
        return self._dropped

    def add(self, event: XidEvent) -> None:
        """Take one event. Events of one source are all different ones, however alike."""
        event = _bounded(event)
        key = (event.boot_id, event.bus_id, event.kind, event.code)
        with self._lock:
            self._added += 1
            bursts = self._bursts.setdefault(key, [])
            place = bisect_right(bursts, event.at, key=_began)
            near = bursts[max(0, place - 2) : place + 1]
            twin: tuple[float, int] | None = None
            burst: _Burst | None = None
            for other in near:
                found = other.twin(event)
                if found is not None and (twin is None or found < twin):
                    twin, burst = found, other
            if burst is None:
                fitting = [other for other in near if other.takes(event.at)]
                burst = min(fitting, key=lambda one: one.distance(event.at), default=None)
            if burst is None:
                burst = _Burst(event)
                bursts.insert(place, burst)
                self._count += 1
            burst.add(event, None if twin is None else twin[1])
            if self._count > MAX_BURSTS:
                self._forget()

    def bursts(
        self,
        *,
        since: float | None = None,
        boot_id: str | None = None,
        codes: Collection[int] = (),
    ) -> tuple[Burst, ...]:
        """What there is, oldest first.

        Args:
            since: Unix seconds; bursts that had ended by then are left out.
            boot_id: only of this boot.
            codes: only these; empty: all.
        """
        with self._lock:
            found = [
                burst.frozen()
                for (boot, _, _, code), bursts in self._bursts.items()
                if boot_id in {None, boot} and (not codes or code in codes)
                for burst in bursts
                if since is None or burst.last_at >= since
            ]
        return tuple(sorted(found, key=lambda burst: burst.first.at))

    def _forget(self) -> None:
        """Make room: of the code with the most bursts the oldest ones, some at once."""
        counts: Counter[int] = Counter()
        for key, bursts in self._bursts.items():
            counts[key[3]] += len(bursts)
        ((code, _),) = counts.most_common(1)
        of_code = [
            (burst.first.at, number, key)
            for key, bursts in self._bursts.items()
            if key[3] == code
            for number, burst in enumerate(bursts)
        ]
        # A list is by time, so what goes is its beginning.
        gone = Counter(key for _, _, key in nsmallest(max(1, MAX_BURSTS // 64), of_code))
        for key, number in gone.items():
            bursts = self._bursts[key]
            self._dropped += sum(burst.count for burst in bursts[:number])
            self._count -= number
            del bursts[:number]
            if not bursts:
                del self._bursts[key]


class _Burst:
    """A burst that may still grow."""

    __slots__ = ("_crowd", "_marks", "_others", "_times", "_told", "first", "last_at")

    def __init__(self, event: XidEvent) -> None:
        self.first, self.last_at = event, event.at
        self._others: tuple[XidEvent, ...] = ()
        """Samples besides the first."""
        self._told = 0
        """Bits of the sources that have told of any event here."""
        self._times = array("d")
        self._marks = bytearray()
        """Per entry of `_times`, the bits of the sources that have told of that event."""
        self._crowd = dict.fromkeys(_BITS, 0)
        """Further events by source. Nobody can tell which of them is whose, but who saw most of
        them saw them all."""

    @property
    def count(self) -> int:
        return len(self._times) + max(self._crowd.values())

    def twin(self, event: XidEvent) -> tuple[float, int] | None:
        """How far away, and which, is the event that another source has told of already."""
        bit = _BITS[event.source]
        if not self._told & ~bit:
            return None  # one source alone
        near = (
            (abs(at - event.at), number)
            for number, at in enumerate(self._times)
            if not self._marks[number] & bit and abs(at - event.at) <= SAME_SECONDS
        )
        return min(near, default=None)

    def distance(self, at: float) -> float:
        """Seconds to the burst as it is now; 0 within it."""
        if at >= self.last_at:
            return at - self.last_at
        return max(self.first.at - at, 0.0)

    def takes(self, at: float) -> bool:
        """Whether an event of that time may join."""
        if self.distance(at) > GAP_SECONDS:
            return False
        return max(self.last_at, at) - min(self.first.at, at) <= BURST_SECONDS

    def add(self, event: XidEvent, twin: int | None) -> None:
        bit = _BITS[event.source]
        self._told |= bit
        if twin is not None:
            self._marks[twin] |= bit
        elif len(self._times) < PAIRED:
            self._times.append(event.at)
            self._marks.append(bit)
        else:
            self._crowd[event.source] += 1
        nameless = not self.first.text and twin is not None and self._times[twin] == self.first.at
        if (event.at < self.first.at and twin is None) or (nameless and event.text):
            event, self.first = self.first, event
            self._others = tuple(one for one in self._others if one.text != self.first.text)
        if len(self._others) < SAMPLES - 1 and event.text:
            told = {sample.text for sample in (self.first, *self._others)}
            if event.text not in told:
                self._others = (*self._others, event)
        elif _FATAL in event.text and not any(_FATAL in one.text for one in self._others):
            # Of NVLink 5 errors no two texts are alike, and one that is fatal must not be lost.
            self._others = (*self._others[:-1], event)
        if event.at > self.last_at:
            self.last_at = event.at

    def frozen(self) -> Burst:
        sources = tuple(source for source, bit in _BITS.items() if self._told & bit)
        others = sorted(self._others, key=lambda event: event.at)
        return Burst(self.first, self.last_at, self.count, sources, (self.first, *others))


def _began(burst: _Burst) -> float:
    return burst.first.at


def _bounded(event: XidEvent) -> XidEvent:
    """The event with its texts cut; the driver writes ASCII, others' bytes are escaped."""
    process = None if event.process is None else _ascii(event.process)[:64]
    text, raw = _ascii(event.text), _ascii(event.raw)
    if (text, raw, process) == (event.text, event.raw, event.process):
        return event  # nearly always: a copy costs as much as all the rest
    return replace(event, text=text, raw=raw, process=process)


def _ascii(text: str) -> str:
    if not text.isascii():
        text = text.encode("ascii", "backslashreplace").decode()
    return text[:TEXT_CHARS]
