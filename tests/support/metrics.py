"""What `/metrics` promises, and a page of it read back by Prometheus' own library."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from prometheus_client.metrics_core import Metric as Parsed
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from mcp_gpu.telemetry.metrics import fleet, node, server
from mcp_gpu.telemetry.metrics.family import Metric

__all__ = ["OPENMETRICS", "PROMISED", "SERIES", "Page", "faults", "promise"]

PROMISED: dict[str, tuple[Metric, ...]] = {
    "agent": (*server.METRICS, *node.METRICS),
    "gateway": (*server.METRICS, *fleet.METRICS),
}
"""By role, but for `process_*`, which the library defines."""

OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3"
"""As a Prometheus server asks."""

_SUFFIXES = {
    "counter": ("",),
    "gauge": ("",),
    "info": ("",),
    "histogram": ("_bucket", "_count", "_sum"),
}
"""What a series' name has after its metric's."""

SERIES = {
    each.name + suffix: {*each.labels, *({"le"} if suffix == "_bucket" else ())}
    for metrics in PROMISED.values()
    for each in metrics
    for suffix in _SUFFIXES[each.kind]
}
"""Every series with its labels."""

UNITS = "milliseconds|microseconds|minutes|hours|days|ms|mib|kib|mb|kb|percent|celsius|kilobytes"
"""Words that stand for no base unit."""

TYPES = "counter|gauge|histogram|summary|metric"

MOST_SERIES = 150
"""More of one metric, over two nodes, are an explosion of labels."""


def promise(role: str) -> dict[str, Any]:
    """Names, types, labels and meanings, as a golden file holds them."""
    return {
        each.name: {"type": each.kind, "labels": sorted(each.labels), "help": each.help}
        for each in PROMISED[role]
    }


class Page:
    """One scrape.

    Args:
        media_type: as the server says; it decides by which rules the text is read.
    """

    def __init__(self, text: str, media_type: str) -> None:
        self.text, self.media_type = text, media_type
        openmetrics = media_type.startswith("application/openmetrics-text")
        self.families: list[Parsed] = list((read_openmetrics if openmetrics else read_text)(text))

    def value(self, name: str, /, **labels: str) -> float:
        """Of the one series with that name and those labels."""
        (found,) = self.values(name, **labels)
        return found

    def values(self, name: str, /, **labels: str) -> list[float]:
        """Of all series with that name that have those labels, and perhaps others."""
        return [
            sample.value
            for family in self.families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]

    def shown(self) -> dict[str, tuple[str, str]]:
        """Type and meaning by name as Prometheus' text has it, but for `process_*`."""
        return {
            _full(family): (family.type, family.documentation)
            for family in self.families
            if not family.name.startswith("process_")
        }


def _full(family: Parsed) -> str:
    suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
    return family.name.removesuffix(suffix) + suffix


def faults(page: Page) -> Iterator[str]:
    """What `promtool check metrics` would say, and what it would let pass."""
    names = [_full(family) for family in page.families]
    yield from (f"{name}: twice" for name in {each for each in names if names.count(each) > 1})
    for name, family in zip(names, page.families, strict=True):
        if not re.fullmatch(r"(mcp_gpu|process)(_[a-z0-9]+)+", name):
            yield f"{name}: not in snake case, or without the prefix"
        if family.type == "unknown":
            yield f"{name}: without a type"
        if (family.type == "counter") != name.endswith("_total"):
            yield f"{name}: _total is for counters, and all of them"
        if re.search(f"_({UNITS})(_|$)", name):
            yield f"{name}: not in a base unit"
        if re.search(f"_({TYPES})(_|$)", name):
            yield f"{name}: has its type in its name"
        if not re.fullmatch(r"\S.*\.", family.documentation):
            yield f"{name}: without a sentence of help"
        if len(family.samples) > MOST_SERIES:
            yield f"{name}: {len(family.samples)} series"
        seen = set()
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            if (sample.name, labels) in seen:
                yield f"{sample.name}: twice with {labels}"
            seen.add((sample.name, labels))
            if not math.isfinite(sample.value):
                yield f"{sample.name}: {sample.value}"
            for label, value in labels:
                if label != "le" and not re.fullmatch(r"[a-z][a-z_]*", label):
                    yield f"{sample.name}: label {label}"
                if label in {"quantile", "job", "instance"} or not value:
                    yield f"{sample.name}: label {label} is taken, or empty"
