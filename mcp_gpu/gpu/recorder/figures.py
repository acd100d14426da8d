"""A stretch of cells in few numbers: `Summary`, and `buckets` to draw it by.

A bucket keeps the lowest, the mean and the highest of its cells. A method that picks readings, such
as LTTB, would show either a spike's top or the bottom beside it, and has nothing for gaps.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final

from mcp_gpu.gpu.recorder.ring import Cells

__all__ = ["Buckets", "Summary", "buckets", "known", "summary"]

_RANK: Final = 0.95


@dataclass(frozen=True, slots=True)
class Summary:
    """What a metric was over a stretch, as far as it is known."""

    low: float
    mean: float
    high: float
    p95: float
    """Of the cells' means: 95 in 100 are not above it."""
    last: float
    total: float
    """Of a counter."""
    unknown: float
    """Share of the cells without a reading, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """Neighbouring cells drawn together; None: not one of them is known."""

    start: float
    """When the first begins, Unix seconds."""
    step: float
    mean: list[float | None]
    low: list[float | None]
    high: list[float | None]


def known(column: array[float]) -> list[tuple[int, float]]:
    """Place and value of the cells that have one."""
    return [(place, value) for place, value in enumerate(column) if value == value]


def summary(cells: Cells) -> Summary | None:
    """In few numbers; None where nothing is known."""
    means = [value for _, value in known(cells.mean)]
    if not means:
        return None
    ordered = sorted(means)
    total = sum(means)
    return Summary(
        low=min(value for _, value in known(cells.low)),
        mean=total / len(means),
        high=max(value for _, value in known(cells.high)),
        p95=ordered[ceil(_RANK * len(ordered)) - 1],
        last=means[-1],
        total=total,
        unknown=1 - len(means) / len(cells.mean),
    )


def buckets(cells: Cells, most: int, *, counted: bool) -> Buckets:
    """As many of equal length as are asked for, or fewer; the last one ends with the cells.

    Args:
        counted: the cells are increases, which add up.
    """
    count = len(cells.mean)
    each = ceil(count / most)
    # The first of them reaches back before the first cell where the numbers do not divide.
    first = count - each * ceil(count / each)
    bounds = range(first, count, each)

    def drawn(column: array[float], fold: Callable[[Sequence[float]], float]) -> list[float | None]:
        found = []
        for begin in bounds:
            values = [v for v in column[max(begin, 0) : begin + each] if v == v]
            found.append(fold(values) if values else None)
        return found

    return Buckets(
        start=cells.start + first * cells.step,
        step=each * cells.step,
        mean=drawn(cells.mean, sum if counted else _mean),
        low=drawn(cells.low, min),
        high=drawn(cells.high, max),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
