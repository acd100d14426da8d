"""What `get_gpu_timeline` is asked and answers about one node, on the wire."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from mcp_gpu.gpu.health.model import Severity
from mcp_gpu.gpu.wire import Wire
from mcp_gpu.registry import Arguments
from mcp_gpu.tools.moments import moment, seconds

__all__ = [
    "MAIN",
    "NAME",
    "Change",
    "Duration",
    "GpuTimeline",
    "MetricName",
    "NodeTimeline",
    "Series",
    "Statistics",
    "TimelineArguments",
    "TimelineEvent",
]

NAME: Final = "get_gpu_timeline"

MetricName = Literal[
    "temperature_celsius",
    "memory_temperature_celsius",
    "power_draw_watts",
    "clock_sm_mhz",
    "clock_memory_mhz",
    "utilization_gpu_percent",
    "utilization_memory_percent",
    "memory_used_bytes",
    "slowed_by_power_cap_percent",
    "slowed_by_sync_boost_percent",
    "slowed_by_sw_thermal_percent",
    "slowed_by_hw_thermal_percent",
    "slowed_by_hw_power_brake_percent",
    "ecc_corrected",
    "ecc_uncorrected",
    "pcie_replays",
    "nvlink_errors",
]

MAIN: Final[tuple[MetricName, ...]] = (
    "utilization_gpu_percent",
    "memory_used_bytes",
    "power_draw_watts",
    "temperature_celsius",
    "clock_sm_mhz",
)
"""Drawn where no metrics are named."""


def _duration(text: str) -> str:
    if not seconds(text):
        raise ValueError('should be a duration such as "10m", "2h" or "1d"')
    return text


def _moment(text: str) -> str:
    if moment(text) is None:
        raise ValueError('should be an ISO 8601 time with its zone such as "2026-11-26T10:00:00Z"')
    return text


Time = Annotated[str, AfterValidator(_moment)]
Duration = Annotated[str, AfterValidator(_duration)]


class TimelineArguments(Arguments):
    """Which stretch of which GPUs."""

    gpu: int | Annotated[str, Field(max_length=100)] | None = Field(
        default=None, description="Index or UUID of one GPU; default all, in few words."
    )
    window: Duration | None = Field(
        default=None,
        max_length=64,
        description="How long, such as 10m, 2h or 24h, up to `until`; default 1h.",
    )
    since: Time | None = Field(
        default=None,
        max_length=64,
        description="Instead of `window`: an ISO 8601 time with its zone.",
    )
    until: Time | None = Field(
        default=None, max_length=64, description="An ISO 8601 time with its zone; default now."
    )
    metrics: tuple[MetricName, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=17,
        description="Only these; default: changes and statistics of all, series of the main five.",
    )
    points: int = Field(
        default=60, ge=0, le=500, description="Most points of each series; 0: no series."
    )


class Change(Wire, defer_build=True):
    """A metric that was something else before, or errors that came."""

    metric: str
    unit: str = Field(description="Empty: a number of errors.")
    kind: Literal["shift", "errors"] = Field(
        description="shift: the mean level changed; errors: some came."
    )
    at: str = Field(description="When, in UTC; of errors the first.")
    seconds_ago: float
    before: float | None = Field(description="Mean level until then; null for errors.")
    after: float = Field(description="Mean level from then on; how many errors came.")
    weight: float = Field(
        description="In times of the least that is worth telling, up to a most: what is compared "
        "between metrics."
    )


class Statistics(Wire, defer_build=True):
    """One metric over the stretch, as far as it is known."""

    metric: str
    unit: str
    min: float | None = Field(description="Null for errors, as the next four.")
    mean: float | None
    max: float | None
    p95: float | None = Field(description="Of the means of cells.")
    last: float | None = Field(description="The latest known.")
    total: float | None = Field(description="How many errors came; null for the others.")
    unknown_share: float = Field(description="Of the time, 0 to 1: without a reading.")


class Series(Wire, defer_build=True):
    """One metric in points of equal length. Null: no reading, which is not 0."""

    metric: str
    unit: str
    start: str = Field(description="When the first point begins, in UTC.")
    step_seconds: float
    values: tuple[float | None, ...] = Field(description="Mean of each; how many errors came.")
    min: tuple[float | None, ...] = Field(description="Lowest within each; empty for errors.")
    max: tuple[float | None, ...]


class TimelineEvent(Wire, defer_build=True):
    """Something that happened."""

    kind: str = Field(
        description="xid, gpu, nvml, driver, reset, slowed, action, verdict or clock."
    )
    severity: Severity = Field(description="By itself; of an Xid by its code.")
    at: str = Field(description="When it began, in UTC.")
    seconds_ago: float
    last_seconds_ago: float = Field(description="The same of the last of `count` alike.")
    count: int
    gpu_index: int | None = Field(description="Null: the node as a whole, or a GPU not known.")
    text: str


class GpuTimeline(Wire, defer_build=True):
    """One GPU over the stretch."""

    gpu_index: int
    uuid: str | None
    name: str | None
    recorded_since: str | None = Field(
        description="First reading in this stretch, in UTC; null: none. What was before is unknown."
    )
    changes: tuple[Change, ...] = Field(description="The greatest first.")
    changes_omitted: int
    throttle_reasons: tuple[str, ...] | None = Field(
        description="Why its clocks are lowered now; null: not known."
    )
    statistics: tuple[Statistics, ...] = Field(
        description="Of the metrics that were named; else of one GPU all, of several the main five."
    )
    series: tuple[Series, ...] = Field(
        description="Of one GPU that was asked for, or of metrics that were named."
    )
    unavailable: dict[str, str] = Field(
        description="Metric without any reading in this stretch to the reason."
    )


class NodeTimeline(Wire):
    """What one node's GPUs have done."""

    node: str
    simulated: bool = Field(description="True: no real hardware stands behind this.")
    message: str | None = Field(description="Why GPUs cannot be read now, and what to do.")
    since: str = Field(description="In UTC; no earlier than what is kept.")
    until: str
    kept_hours: float = Field(description="How far back readings are kept at most.")
    unsaved: str = Field(
        default="",
        description="Why what is recorded will not outlive the agent though it should; empty: it "
        "will, or no folder is named for it.",
    )
    weight: float = Field(description="The greatest of its changes and events; 0: none.")
    gpus: tuple[GpuTimeline, ...] = Field(description="By index.")
    events: tuple[TimelineEvent, ...] = Field(description="The gravest first, then the newest.")
    events_omitted: int = Field(description="Lighter and older ones.")
