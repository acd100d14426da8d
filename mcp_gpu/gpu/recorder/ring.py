"""Cells of equal length in a ring of fixed size: `Ring`, and a stretch of one column as `Cells`.

A cell without a reading is unknown, NaN in the arrays, and never 0. Of readings that come and go
within a cell it keeps the lowest, the mean and the highest.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from math import floor, nan
from typing import Final, NamedTuple

__all__ = ["Cells", "Ring"]

_MOST: Final = 65_535
"""Readings counted in one cell: what an array of type H holds."""


class Cells(NamedTuple):
    """Consecutive cells of one metric; NaN where nothing is known."""

    start: float
    """When the first begins, Unix seconds."""
    step: float
    """Seconds of each."""
    mean: array[float]
    """Of errors: how many came in the cell, as in the next two."""
    low: array[float]
    high: array[float]


class Ring:
    """One GPU's cells of one length.

    Args:
        step: seconds of a cell.
        size: cells kept.
        levels: columns of readings.
        sums: columns of increases, numbered after them.
    """

    __slots__ = ("_counts", "_high", "_levels", "_low", "_mean", "_sums", "head", "size", "step")

    def __init__(self, step: float, size: int, levels: int, sums: int) -> None:
        self.step, self.size, self._levels = step, size, levels
        self.head: int | None = None
        """Number of the newest cell, counted from the axis's 0."""
        self._mean, self._low, self._high, self._sums = (
            [array("f", [nan]) * size for _ in range(columns)]
            for columns in (levels, levels, levels, sums)
        )
        self._counts = [array("H", [0]) * size for _ in range(levels)]

    def read(self, at: float, values: Sequence[float | None], *, carry: bool) -> None:
        """Take readings of one moment; None is left unknown.

        Args:
            at: seconds on the axis. A moment older than the ring is passed over.
            values: of the first columns.
            carry: whether the readings before these were true until now: cells without any in
                between get them.
        """
        number, before = floor(at / self.step), self.head
        if before is None or number > before:
            self._advance(number)
            if carry and before is not None:
                self._carry(before, number)
        elif number <= before - self.size:
            return
        place = number % self.size
        for column, value in enumerate(values):
            if value is not None:
                self._put(column, place, value)

    def fill(self, column: int, since: float, until: float, value: float) -> None:
        """Let a level have been this all the time from one moment to another, which has been
        read."""
        for number in self._between(since, until):
            self._put(column, number % self.size, value)

    def add(self, column: int, since: float, until: float, amount: float) -> None:
        """Count an increase that came between two moments, in the cell of the latter, which has
        been read. Nothing came in the others, as far as anybody can tell."""
        sums = self._sums[column - self._levels]
        for number in self._between(since, until):
            place = number % self.size
            if sums[place] != sums[place]:
                sums[place] = 0.0
        if self.head is not None and floor(until / self.step) > self.head - self.size:
            place = floor(until / self.step) % self.size
            sums[place] = amount + (0.0 if sums[place] != sums[place] else sums[place])

    def cells(self, column: int, since: float, until: float) -> Cells:
        """Those that overlap a stretch of the axis, all of it."""
        first, last = (
            floor(since / self.step),
            max(floor(since / self.step), floor(until / self.step)),
        )
        if column >= self._levels:
            sums = self._stretch(self._sums[column - self._levels], first, last)
            return Cells(first * self.step, self.step, sums, sums, sums)
        mean, low, high = (
            self._stretch(kept[column], first, last) for kept in (self._mean, self._low, self._high)
        )
        return Cells(first * self.step, self.step, mean, low, high)

    @property
    def columns(self) -> int:
        """How many arrays it is packed into."""
        return 4 * self._levels + len(self._sums)

    def packed(self) -> Iterator[bytes]:
        """All columns, from the place of the oldest cell on, for `restore` of a like ring."""
        for kept in self._columns():
            yield kept.tobytes()

    def restore(self, head: int | None, size: int, columns: Sequence[memoryview]) -> None:
        """Take over what a ring of the same columns and another size held.

        Raises:
            ValueError: it was none.
        """
        own = list(self._columns())
        if len(columns) != len(own):
            raise ValueError("other columns")
        if head is None:
            return
        self._advance(head)
        for kept, data in zip(own, columns, strict=True):
            there = array(kept.typecode)
            there.frombytes(data)
            if len(there) != size:
                raise ValueError("columns of another size")
            for number in range(head - min(size, self.size) + 1, head + 1):
                kept[number % self.size] = there[number % size]

    def _columns(self) -> Iterator[array[float] | array[int]]:
        for kept in (self._mean, self._low, self._high, self._sums):
            yield from kept
        yield from self._counts

    def _between(self, since: float, until: float) -> range:
        """Numbers of the cells after that of `since`, up to that of `until`, as far as kept."""
        if self.head is None:
            return range(0)
        last = min(floor(until / self.step), self.head)
        first = floor(since / self.step) + 1
        return range(max(min(first, last), self.head - self.size + 1), last + 1)

    def _put(self, column: int, place: int, value: float) -> None:
        counts, mean = self._counts[column], self._mean[column]
        count = counts[place]
        if not count:
            counts[place] = 1
            mean[place] = self._low[column][place] = self._high[column][place] = value
            return
        if count < _MOST:
            counts[place] = count = count + 1
        mean[place] += (value - mean[place]) / count
        if value < self._low[column][place]:
            self._low[column][place] = value
        elif value > self._high[column][place]:
            self._high[column][place] = value

    def _advance(self, number: int) -> None:
        """Make a cell the newest one; those passed over are unknown."""
        fresh = self.size if self.head is None else min(number - self.head, self.size)
        self.head = number
        # In two runs at most, where the ring's end is among them.
        first = (number - fresh + 1) % self.size
        runs = [slice(first, first + fresh)]
        if first + fresh > self.size:
            runs = [slice(first, self.size), slice(0, first + fresh - self.size)]
        for run in runs:
            length = run.stop - run.start
            unknown, none = array("f", [nan]) * length, array("H", [0]) * length
            for kept in (self._mean, self._low, self._high, self._sums):
                for column in kept:
                    column[run] = unknown
            for counts in self._counts:
                counts[run] = none

    def _carry(self, before: int, number: int) -> None:
        """Let the cells between two readings have what the former was."""
        source = before % self.size
        for place in (between % self.size for between in range(before + 1, number)):
            for column, counts in enumerate(self._counts):
                if counts[source] and not counts[place]:
                    self._put(column, place, self._mean[column][source])

    def _stretch(self, column: array[float], first: int, last: int) -> array[float]:
        if self.head is None:
            return array("f", [nan]) * (last - first + 1)
        kept = range(max(first, self.head - self.size + 1), min(last, self.head) + 1)
        if not kept:
            return array("f", [nan]) * (last - first + 1)
        found = array("f", [nan]) * (kept[0] - first)
        begin, end = kept[0] % self.size, kept[-1] % self.size
        found += column[begin : end + 1] if begin <= end else column[begin:] + column[: end + 1]
        return found + array("f", [nan]) * (last - kept[-1])
