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
        self._recent: deque[Snapshot] = deque(maxlen=WINDOW)
        self._past = Past()

    def add(self, snapshot: Snapshot) -> None:
        """Take a snapshot with slow readings that no former one had."""
        first = self._past.first
        if first is None or snapshot.generation != first.generation:
            first = snapshot
            self._recent.clear()
        self._recent.append(snapshot)
        # In one assignment: who takes it meanwhile never gets parts of two generations.
        self._past = Past(first, tuple(self._recent))

    def of(self, generation: int) -> Past:
        """What there is now of this generation; of any other, nothing is known."""
        past = self._past
        same = past.first is not None and past.first.generation == generation
        return past if same else Past()
