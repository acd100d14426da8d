"""How long things have taken lately."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Hashable

__all__ = ["Latencies"]

REMEMBERED = 128
"""Durations kept of each kind."""


class Latencies:
    """Recent durations by kind, such as a path and a tool.

    Args:
        clock: seconds, as of `time.monotonic`.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lately: defaultdict[Hashable, deque[tuple[float, float]]] = defaultdict(
            lambda: deque(maxlen=REMEMBERED)
        )

    def add(self, kind: Hashable, seconds: float) -> None:
        """Something of this kind has just taken so long."""
        self._lately[kind].append((self._clock(), seconds))

    def p99_seconds(self, kind: Hashable, *, within_seconds: float) -> float:
        """What 99 of 100 have stayed below, of those that ended within that time; 0 for none."""
        since = self._clock() - within_seconds
        found = sorted(seconds for at, seconds in self._lately.get(kind, ()) if at >= since)
        return found[math.ceil(len(found) * 0.99) - 1] if found else 0.0
