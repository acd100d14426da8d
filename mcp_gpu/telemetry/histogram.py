"""Durations counted in buckets, as Prometheus has them, at the price of one addition each."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

__all__ = ["CALL_SECONDS", "Histogram"]

CALL_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bounds for what goes over a network: a call over a warm path takes milliseconds, and one is given
up after 20 s."""


class Histogram:
    """Args:
    bounds: of the buckets, each its inclusive upper one, rising; there is one more beyond the last.

    Written by one thread, and read by any.
    """

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = CALL_SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        """Of all that were observed."""

    def observe(self, value: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def buckets(self) -> Iterator[tuple[float, int]]:
        """Each upper bound with how many lie at or below it; the last bound is infinite."""
        return zip((*self._bounds, float("inf")), accumulate(tuple(self._counts)), strict=True)
