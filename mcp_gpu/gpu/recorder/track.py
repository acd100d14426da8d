"""What one GPU has done: `Track`, its rings from fine to coarse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Final, Self

from mcp_gpu.gpu.model import Gpu
from mcp_gpu.gpu.recorder.metrics import (
    COUNTERS,
    LEVELS,
    METRICS,
    Parts,
    counters,
    increase,
    levels,
)
from mcp_gpu.gpu.recorder.moment import LATEST, moment
from mcp_gpu.gpu.recorder.ring import Cells, Ring
from mcp_gpu.gpu.vitals import Vitals

__all__ = ["COARSE_SECONDS", "Track", "rings"]

FINE: Final = ((2.0, 330), (10.0, 390))
"""Seconds of a cell, and how many: eleven minutes, and 65."""

COARSE_SECONDS: Final = 60.0
"""Of a cell of the rest, as long as the recorder goes back."""

BRIDGED_SECONDS: Final = 150.0
"""Longest time between two readings of a counter whose increase is told of all of it: five slow
periods. A counter that nobody could read for longer tells that it has grown, and not when."""

_ORDER: Final = {name: column for column, name in enumerate(METRICS)}
_SHARES: Final = sum(metric.kind == "share" for metric in COUNTERS)


def rings(hours: float) -> list[Ring]:
    """The rings of one GPU, from fine to coarse."""
    sizes = (*FINE, (COARSE_SECONDS, round(hours * 3600 / COARSE_SECONDS) + 2))
    columns = len(LEVELS) + _SHARES, len(COUNTERS) - _SHARES
    return [Ring(step, size, *columns) for step, size in sizes]


class Track:
    """One GPU's past. Times are seconds on the recorder's axis.

    Args:
        uuid: by which the GPU is known, wherever it is.
        hours: how far back it goes.
        hold: seconds for which a reading stays true without another.
    """

    def __init__(self, uuid: str, hours: float, hold: float) -> None:
        self.uuid = uuid
        self.index = -1
        """Where it was last."""
        self.name: str | None = None
        self.read_at: float | None = None
        self.rings = rings(hours)
        self._hold = hold
        self._counted: tuple[float, tuple[Parts, ...]] | None = None
        """When the counters were last read, and where they stood."""

    def described(self) -> dict[str, Any]:
        """What it is, for `restored`; the arrays are its rings' own."""
        return {
            "uuid": self.uuid,
            "index": self.index,
            "name": self.name,
            "read_at": self.read_at,
            "rings": [[ring.head, ring.size] for ring in self.rings],
        }

    @classmethod
    def restored(
        cls, described: Mapping[str, Any], arrays: Iterator[memoryview], hours: float, hold: float
    ) -> Self:
        """One as it was described, with its arrays from those that follow.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: that makes no sense.
        """
        track = cls(str(described["uuid"]), hours, hold)
        track.index = int(described["index"])
        name, read_at = described["name"], described["read_at"]
        track.name = None if name is None else str(name)
        track.read_at = None if read_at is None else moment(read_at)
        for ring, (head, size) in zip(track.rings, described["rings"], strict=True):
            own = list(islice(arrays, ring.columns))
            if head is not None and not 0 <= head * ring.step <= LATEST:
                raise ValueError("no moment")
            ring.restore(None if head is None else int(head), int(size), own)
        return track

    def read(self, at: float, gpu: Gpu) -> None:
        """Take the fast readings of one moment."""
        values = levels(gpu)
        if all(value is None for value in values):
            return
        self.index, self.name = gpu.index, gpu.name
        carry = self.read_at is not None and 0 <= at - self.read_at <= self._hold
        self.read_at = at
        for ring in self.rings:
            ring.read(at, values, carry=carry)

    def count(self, at: float, vitals: Vitals) -> None:
        """Take the counters as they stand at a moment of which `read` has been told."""
        before, now = self._counted, counters(vitals)
        self._counted = at, now
        if before is None or at <= before[0]:
            return
        since, seconds = before[0], at - before[0]
        for metric, old, new in zip(COUNTERS, before[1], now, strict=True):
            grown = increase(old, new)
            if grown is None:
                continue
            column = _ORDER[metric.name]
            for ring in self.rings:
                if metric.kind == "count":
                    ring.add(column, since if seconds <= BRIDGED_SECONDS else at, at, grown)
                elif seconds <= BRIDGED_SECONDS:
                    ring.fill(column, since, at, min(100 * grown / seconds, 100.0))

    def begin_anew(self) -> None:
        """What the counters stood at is nothing to measure increases from any more."""
        self._counted = None

    def cells(self, metric: str, since: float, until: float, now: float) -> Cells:
        """A stretch of one metric, as fine as it is still kept from its beginning on."""
        for ring in self.rings:
            if since >= now - (ring.size - 1) * ring.step:
                break
        return ring.cells(_ORDER[metric], since, until)
