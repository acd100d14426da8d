"""Figures, how they are taken, and how they are shown."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

__all__ = ["Figure", "Section", "Variant", "interleaved", "medians", "rounds_of"]

NAME_CHARS = 58

Variant = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the report."""

    name: str
    value: float
    unit: str
    limit: float | None = None
    """The value that acceptance allows at most; None is for information."""

    @property
    def missed(self) -> bool:
        return self.limit is not None and self.value > self.limit

    def __str__(self) -> str:
        shown = f"{self.name:<{NAME_CHARS}} {_number(self.value):>9} {self.unit:<5}"
        if self.limit is None:
            return shown.rstrip()
        return f"{shown} limit {_number(self.limit):>7}{'   MISSED' if self.missed else ''}"


@dataclass(slots=True)
class Section:
    """Figures that belong together, and how they came about."""

    title: str
    figures: list[Figure] = field(default_factory=list)

    def add(self, name: str, value: float, unit: str, limit: float | None = None) -> None:
        self.figures.append(Figure(name, value, unit, limit))

    def __str__(self) -> str:
        return "\n".join([self.title, *(f"  {figure}" for figure in self.figures)])


async def interleaved(variants: Mapping[str, Variant], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every call of each variant.

    One call of each a round, beginning with another one each time: what else the machine does
    hits them alike. The first round warms up and does not count.
    """
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for number, names in enumerate(rounds_of(list(variants), rounds + 1)):
        for name in names:
            started = time.perf_counter()
            await variants[name]()
            elapsed_ms = (time.perf_counter() - started) * 1000
            if number:
                taken[name].append(elapsed_ms)
    return taken


def rounds_of(names: Sequence[str], rounds: int) -> Iterator[list[str]]:
    """The names, `rounds` times, each time beginning with the next one."""
    for number in range(rounds):
        first = number % len(names)
        yield [*names[first:], *names[:first]]


def medians(taken: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: median(values) for name, values in taken.items()}


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"
