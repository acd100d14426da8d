"""When a level changed for good: `shifts`, by binary segmentation.

The stretch is cut where the means of its two sides differ most by least squares, then each side
again, greatest gain first (A. J. Scott and M. Knott, "A cluster analysis method for grouping means
in the analysis of variance", Biometrics 30, 1974). A cut counts if it takes more than
3 * variance * ln(n) off the sum of squares: Schwarz' criterion for two means and a place
(Y.-C. Yao, "Estimating the number of change-points via Schwarz' criterion", Statistics &
Probability Letters 6, 1988). The variance is estimated from the differences of neighbours, which a
shift touches in one place alone, by their median. What counts and is still smaller than the least
that is worth telling is left out. The same values give the same shifts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import accumulate, pairwise
from math import log
from statistics import median
from typing import Final

__all__ = ["Shift", "shifts"]

SHORTEST: Final = 3
"""Cells on either side of a cut: less is a spike, which lowest and highest tell."""

MOST: Final = 6
"""Cuts of one stretch."""

_NORMAL: Final = 0.6745 * 2**0.5
"""Median of the absolute difference of two normal values, in standard deviations of one."""


@dataclass(frozen=True, slots=True)
class Shift:
    """A level was one thing before a place, and another from there on."""

    place: int
    """Of the first value after it."""
    before: float
    """Mean from the shift before this one on, as of the next."""
    after: float


def shifts(values: Sequence[float], least: float) -> list[Shift]:
    """Where the mean of known values shifts by at least `least`, in order."""
    count = len(values)
    if count < 2 * SHORTEST or max(values) - min(values) < least:
        return []
    steps = [abs(after - before) for before, after in pairwise(values)]
    # Readings are rounded: where most neighbours are the same, there is noise all the same.
    deviation = max(median(steps) / _NORMAL, least / 4)
    bar = 3 * deviation**2 * log(count)
    sums = [0.0, *accumulate(values)]
    cuts: list[int] = []
    waiting: list[tuple[float, int, int, int]] = []

    def look(begin: int, end: int) -> None:
        gain, place = _best(sums, begin, end)
        if gain > bar:
            heappush(waiting, (-gain, place, begin, end))

    look(0, count)
    while waiting and len(cuts) < MOST:
        _, place, begin, end = heappop(waiting)
        cuts.append(place)
        look(begin, place)
        look(place, end)
    return _told(sums, sorted(cuts), least)


def _best(sums: Sequence[float], begin: int, end: int) -> tuple[float, int]:
    """How much the best cut of a stretch takes off the sum of squares, and where it is."""
    gain, best = 0.0, begin
    whole, base, length = sums[end] - sums[begin], sums[begin], end - begin
    for place in range(begin + SHORTEST, end - SHORTEST + 1):
        left = place - begin
        apart = (sums[place] - base) - whole * left / length
        found = apart * apart * length / (left * (length - left))
        if found > gain:
            gain, best = found, place
    return gain, best


def _told(sums: Sequence[float], cuts: list[int], least: float) -> list[Shift]:
    """The cuts with the means on their sides, without those that are too small, smallest first."""
    while True:
        bounds = [0, *cuts, len(sums) - 1]
        means = [(sums[end] - sums[begin]) / (end - begin) for begin, end in pairwise(bounds)]
        sizes = [abs(after - before) for before, after in pairwise(means)]
        if not sizes or min(sizes) >= least:
            return [
                Shift(cut, before, after)
                for cut, (before, after) in zip(cuts, pairwise(means), strict=True)
            ]
        del cuts[sizes.index(min(sizes))]
