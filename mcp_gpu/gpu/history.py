"""What was read before: the snapshots that a rate or an increase is measured against."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from mcp_gpu.gpu.model import Snapshot

WINDOW: Final = 20
"""Slow readings kept: ten minutes at the default period."""


@dataclass(frozen=True, slots=True)
class Past:
    """Earlier readings whose counters can be compared with those of now.

    All are of the same NVML generation: counters do not outlive a driver load, and after a new
    initialisation nobody knows whether there was one.
    """

    first: Snapshot | None = None
    """The earliest of this generation."""
    recent: tuple[Snapshot, ...] = ()
    """The last `WINDOW` with slow readings of their own, oldest first; the newest may be what is
    compared with them."""


class History:
    """Collects them. One thread adds, any thread takes."""

    def __init__(self) -> None:
        self._first: Snapshot | None = None
        self._recent: deque[Snapshot] = deque(maxlen=WINDOW)

    def add(self, snapshot: Snapshot) -> None:
        """Take a snapshot with slow readings that no former one had."""
        if self._first is None or snapshot.generation != self._first.generation:
            self._first = snapshot
            self._recent.clear()
        self._recent.append(snapshot)

    def past(self) -> Past:
        """What there is now."""
        return Past(self._first, tuple(self._recent))
