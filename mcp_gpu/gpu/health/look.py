"""What a rule looks at: `Look`, one GPU now and before, and `Unread`, why there is nothing to see.

A rule asks for readings by name and need not care where they lie or whether they exist: what is
missing raises `Unread`, which ends the rule and becomes its entry in `not_checked`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from mcp_gpu.gpu.fields import FAST, STATIC
from mcp_gpu.gpu.health.model import Evidence
from mcp_gpu.gpu.history import Past
from mcp_gpu.gpu.model import Gpu, Snapshot
from mcp_gpu.gpu.vitals import Link, Vitals
from mcp_gpu.gpu.wire import NOT_REPORTED

NO_HISTORY: Final = "not enough history yet"

MIG_ACTIVE: Final = "mig_active"
"""MIG hides it. As in `Gpu.unavailable`."""

WINDOW_MIN_SECONDS: Final = 25.0
"""A rate over less says more about the moment of reading than about the board. One period of slow
readings, which is 30 s by default, less what a busy node may be early."""

UNITS: Final = {
    "_celsius": "°C",
    "_seconds": "s",
    "_percent": "%",
    "_watts": "W",
    "_mbps": "MB/s",
    "_errors": "errors",
    "pcie_width_current": "lanes",
    "pcie_width_max": "lanes",
}
"""By how the name of a reading ends."""


class Unread(Exception):
    """A check cannot be made. `reason` is of the list that `Gpu.unavailable` uses, or words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Growth:
    """How much a counter grew over the window."""

    reading: str
    by: float
    seconds: float
    """How long the window is; never below `WINDOW_MIN_SECONDS`."""
    age_seconds: float | None

    @property
    def per_minute(self) -> float:
        return self.by * 60 / self.seconds

    @property
    def share(self) -> float:
        """Of a counter of seconds: its part of the window, 0 to 1."""
        return min(1.0, self.by / self.seconds)

    def evidence(self, note: str = "") -> Evidence:
        """The growth itself, not the count."""
        by = int(self.by) if self.by == int(self.by) else round(self.by, 3)
        return Evidence(
            reading=self.reading,
            value=by,
            unit=f"{_unit(self.reading)} more in {self.seconds:.0f} s".strip(),
            age_seconds=self.age_seconds,
            note=note,
        )


class Window:
    """The slow readings of one node that counters are compared over; the last are those of now."""

    def __init__(self, now: Snapshot, past: Past) -> None:
        recent = [one for one in past.recent if self._comparable(one, now)]
        latest = [now] if now.slow_at is not None else []
        self.snapshots = tuple(sorted([*recent, *latest], key=_slow_at))
        # As each was read, with the fast readings of its own time; `now` may have later ones.
        same = [one for one in past.recent if _moment(one) == _moment(now)] or latest
        self.moments = tuple(sorted([*recent, *same[-1:]], key=_slow_at))
        first = past.first
        self.first = first if first is not None and self._comparable(first, now) else None

    @staticmethod
    def _comparable(snapshot: Snapshot, now: Snapshot) -> bool:
        return (
            snapshot.slow_at is not None
            and now.slow_at is not None
            and snapshot.slow_at < now.slow_at
            and snapshot.generation == now.generation
        )

    @property
    def seconds(self) -> float | None:
        """How long it is; None: too short to measure anything over."""
        if not self.snapshots:
            return None
        span = _slow_at(self.snapshots[-1]) - _slow_at(self.snapshots[0])
        return span if span >= WINDOW_MIN_SECONDS else None

    @property
    def period_seconds(self) -> float | None:
        """The time between slow readings as it is when nothing delays them."""
        times = [_slow_at(snapshot) for snapshot in self.snapshots]
        return min((later - one for one, later in pairwise(times)), default=None)


class Look:
    """One GPU as a rule sees it.

    Args:
        position: its place in `Snapshot.gpus`, which is the same all through a generation.
        at: the time to which ages are told, Unix seconds.
    """

    def __init__(self, snapshot: Snapshot, position: int, window: Window, at: float) -> None:
        self.snapshot, self.window = snapshot, window
        self._position, self._at = position, at
        self.gpu = snapshot.gpus[position]
        self.vitals = _vitals(snapshot, position)

    @property
    def index(self) -> int:
        """As NVML counts."""
        return self.gpu.index

    def get(self, name: str) -> Any:
        """A reading of `Gpu` or `Vitals`, or None."""
        return getattr(self._holder(name), name)

    def read(self, name: str) -> Any:
        """The same. Raises: Unread: there is none."""
        value = self.get(name)
        if value is None:
            raise Unread(self.reason(name))
        return value

    def reason(self, name: str) -> str:
        """Why a reading is missing."""
        return self._holder(name).unavailable.get(name, NOT_REPORTED)

    def age(self, name: str) -> float | None:
        """How old a reading is, in seconds."""
        if name in FAST.fields:
            taken = self.snapshot.fast_at
        else:
            taken = self.snapshot.static_at if name in STATIC.fields else self.snapshot.slow_at
        return None if taken is None else round(max(0.0, self._at - taken), 1)

    def evidence(self, name: str, note: str = "") -> Evidence:
        """A reading as it is, with its reason in the note if it could not be read."""
        value = self.get(name)
        if value is None:
            note = note or self.reason(name)
        elif isinstance(value, tuple):
            value = ", ".join(map(str, value)) or "none"
        return Evidence(
            reading=name, value=value, unit=_unit(name), age_seconds=self.age(name), note=note
        )

    def growth(self, name: str, link: int | None = None) -> Growth:
        """How much a counter grew over the window, or since it was last set back within it.

        Args:
            link: position in `Vitals.links`, for a counter of `Link`.

        Raises:
            Unread: no counter, or too little history.
        """
        holder: Gpu | Vitals | Link
        holder = self._holder(name) if link is None else self.vitals.links[link]
        if getattr(holder, name) is None:
            raise Unread(holder.unavailable.get(name, NOT_REPORTED))
        series = list(self._series(name, link))
        if not series:
            raise Unread(NO_HISTORY)
        start = 0
        for index in range(1, len(series)):
            if series[index][1] < series[index - 1][1]:
                start = index  # The driver was loaded anew, or somebody cleared it.
        begun, value = series[start]
        ended, last = series[-1]
        if ended - begun < WINDOW_MIN_SECONDS:
            raise Unread(NO_HISTORY)
        reading = name if link is None else f"links[{self.vitals.links[link].index}].{name}"
        return Growth(reading, last - value, ended - begun, self.age(name))

    def since_first(self, name: str) -> tuple[float, float] | None:
        """How much a counter grew since the first reading, and in how many seconds.

        None where that is not known, or it was set back in between.
        """
        first, slow_at = self.window.first, self.snapshot.slow_at
        if first is None or first.slow_at is None or slow_at is None:
            return None
        then, now = _value(first, self._position, name, None), self.get(name)
        if then is None or now is None or now < then:
            return None
        return now - then, slow_at - first.slow_at

    def before(self, name: str) -> list[Any]:
        """What a reading of `Gpu` was at each earlier slow reading, where it was read."""
        earlier = [s for s in self.window.snapshots if s is not self.snapshot]
        earlier += [self.window.first] if self.window.first else []
        values = (_value(snapshot, self._position, name, None) for snapshot in earlier)
        return [value for value in values if value is not None]

    def lasted(self, name: str) -> float:
        """For how many seconds a reading has been what it is, as far back as the window goes."""
        value, latest = self.get(name), self.snapshot.slow_at
        since = latest
        for snapshot in reversed(self.window.snapshots):
            if _value(snapshot, self._position, name, None) != value:
                break
            since = snapshot.slow_at
        return 0.0 if latest is None or since is None else latest - since

    def at(self, moment: Snapshot) -> Gpu | None:
        """This GPU in another snapshot of the window."""
        return moment.gpus[self._position] if self._position < len(moment.gpus) else None

    def peers(self) -> list[Gpu]:
        """The other GPUs of the node that are read and of the same model."""
        return [
            gpu
            for gpu in self.snapshot.gpus
            if gpu is not self.gpu and gpu.state == "ok" and gpu.name and gpu.name == self.gpu.name
        ]

    def _holder(self, name: str) -> Gpu | Vitals:
        return self.gpu if name in Gpu.model_fields else self.vitals

    def _series(self, name: str, link: int | None) -> Iterator[tuple[float, float]]:
        for snapshot in self.window.snapshots:
            value = _value(snapshot, self._position, name, link)
            if value is not None and math.isfinite(value):
                yield _slow_at(snapshot), value


def agreed(values: list[Any], above: Any) -> Any:
    """The highest value above one's own that at least two peers show, or None."""
    shown = [value for value in values if value is not None and value > above]
    return max((value for value in shown if shown.count(value) >= 2), default=None)


def _value(snapshot: Snapshot, position: int, name: str, link: int | None) -> Any:
    if position >= len(snapshot.gpus):
        return None
    if name in Gpu.model_fields:
        return getattr(snapshot.gpus[position], name)
    vitals = _vitals(snapshot, position)
    if link is None:
        return getattr(vitals, name)
    return getattr(vitals.links[link], name) if link < len(vitals.links) else None


def _vitals(snapshot: Snapshot, position: int) -> Vitals:
    if position < len(snapshot.vitals):
        return snapshot.vitals[position]
    return Vitals(index=position)


def _moment(snapshot: Snapshot) -> tuple[int, float | None]:
    return snapshot.generation, snapshot.slow_at


def _slow_at(snapshot: Snapshot) -> float:
    return snapshot.slow_at or 0.0


def _unit(name: str) -> str:
    return next((unit for end, unit in UNITS.items() if name.endswith(end)), "")
