"""A metric, and what it is now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from mcp_gpu.telemetry.histogram import Histogram

__all__ = ["Family", "Kind", "Metric", "Value"]

Kind = Literal["counter", "gauge", "histogram", "info"]

Value = float | Histogram

Label = TypeVar("Label", bound=str)
Labels = TypeVar("Labels", bound=tuple[str, ...])


@dataclass(frozen=True, slots=True)
class Metric:
    """A name that is a promise, with its labels and meaning."""

    name: str
    """As in Prometheus' text format: counters end in `_total`, what is only labels in `_info`."""
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()

    def is_now(self, value: Value | None) -> Family:
        """The one series of a metric without labels; none while there is nothing to tell."""
        return Family(self, {} if value is None else {(): value})

    def by_label(self, values: Mapping[Label, Value]) -> Family:
        """The series of a metric with one label."""
        return Family(self, {(label,): value for label, value in values.items()})

    def series(self, values: Mapping[Labels, Value]) -> Family:
        """The series by the values of their labels, in the metric's order."""
        return Family(self, {labels: value for labels, value in values.items()})  # noqa: C416

    def one_of(self, states: Iterable[str], now: str) -> Family:
        """1 for the state there is, 0 for each other one."""
        return self.by_label({state: float(state == now) for state in states})


@dataclass(frozen=True, slots=True)
class Family:
    """All series of a metric at one moment."""

    metric: Metric
    values: Mapping[tuple[str, ...], Value]
    """By the values of the labels, in the metric's order."""
