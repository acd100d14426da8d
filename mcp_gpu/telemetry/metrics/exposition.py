"""The page that Prometheus reads: the one importer of its client library."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from prometheus_client import ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric as Foreign
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from mcp_gpu.telemetry.histogram import Histogram
from mcp_gpu.telemetry.metrics.family import Family

__all__ = ["written"]

OPENMETRICS = "application/openmetrics-text"


def written(families: Iterable[Family], accept: str) -> tuple[bytes, str]:
    """The page and its content type: OpenMetrics for who takes that, else Prometheus' text 0.0.4.

    Args:
        accept: the Accept header, whatever somebody has written there.
    """
    collector = _Collector(families)
    if _takes_openmetrics(accept):
        page: bytes = openmetrics.generate_latest(collector)  # type: ignore[no-untyped-call]
        return page, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(collector), CONTENT_TYPE_PLAIN_0_0_4


def _takes_openmetrics(accept: str) -> bool:
    for kind in accept.lower().split(","):
        name, *parameters = (part.replace(" ", "") for part in kind.split(";"))
        if name == OPENMETRICS:
            return not {"q=0", "q=0.0", "q=0.00", "q=0.000"} & set(parameters)
    return False


class _Collector(Collector):
    """Ours, and what the library itself tells of a process on Linux under names that all use."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Foreign]:
        yield from map(_foreign, self._families)
        yield from ProcessCollector(registry=None).collect()


def _foreign(family: Family) -> Foreign:
    metric = family.metric
    if metric.kind == "info":
        info = InfoMetricFamily(metric.name.removesuffix("_info"), metric.help)
        for labels in family.values:
            info.add_metric((), dict(zip(metric.labels, labels, strict=True)))
        return info
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, value in family.values.items():
            assert isinstance(value, Histogram)
            buckets = [(_bound(upper), count) for upper, count in value.buckets()]
            histogram.add_metric(labels, buckets, value.sum)
        return histogram
    make = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    plain = make(metric.name, metric.help, labels=metric.labels)
    for labels, value in family.values.items():
        assert not isinstance(value, Histogram)
        plain.add_metric(labels, value)
    return plain


def _bound(upper: float) -> str:
    return "+Inf" if upper == math.inf else str(upper)
