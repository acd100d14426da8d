"""What an agent tells of itself: how reading its GPUs goes, and its verdict on each."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, get_args

from mcp_gpu.gpu.errors import error_name
from mcp_gpu.gpu.health.assess import assess
from mcp_gpu.gpu.health.model import Assessment, Severity, Verdict
from mcp_gpu.gpu.model import SnapshotState
from mcp_gpu.telemetry.metrics.family import Family, Metric

if TYPE_CHECKING:  # a gateway, on any system, has the names alone
    from mcp_gpu.gpu.collector import Collector
    from mcp_gpu.gpu.recorder.recorder import Recorder
    from mcp_gpu.node.watch import XidWatch

__all__ = ["METRICS", "families"]

NVML_STATE: Final = Metric(
    "mcp_gpu_nvml_state",
    "gauge",
    "1 for the state that NVML is in: absent (no library or driver), failing (it refuses), "
    "starting, ok.",
    ("state",),
)
NVML_BLOCKED: Final = Metric(
    "mcp_gpu_nvml_blocked_seconds",
    "gauge",
    "How long the NVML call under way has not returned; 0 below 2 s. Nothing is read meanwhile.",
)
NVML_SECONDS: Final = Metric(
    "mcp_gpu_nvml_call_duration_seconds",
    "histogram",
    "How long the collector's calls of NVML took, whatever came of them.",
)
NVML_ERRORS: Final = Metric(
    "mcp_gpu_nvml_errors_total",
    "counter",
    "The collector's calls that NVML refused, by its name for the reason. NotSupported and "
    "FunctionNotFound are usual: boards and drivers differ in what they have.",
    ("error",),
)
GENERATION: Final = Metric(
    "mcp_gpu_nvml_initializations_total",
    "counter",
    "Times that NVML was initialised. It is again after a failure, and while a GPU is lost.",
)
SNAPSHOT_AGE: Final = Metric(
    "mcp_gpu_snapshot_age_seconds",
    "gauge",
    "Age of the readings: fast (utilisation, power, temperature, clocks, memory) and slow (links, "
    "modes, error counters). No series before the first.",
    ("readings",),
)
GPUS: Final = Metric("mcp_gpu_gpus", "gauge", "GPUs that NVML counts now.")
GPUS_EXPECTED: Final = Metric(
    "mcp_gpu_gpus_expected",
    "gauge",
    "GPUs that the node should have: --expected-gpus, or else the most there were since the start.",
)
GPU_HEALTH: Final = Metric(
    "mcp_gpu_gpu_health",
    "gauge",
    "1 for the verdict on each GPU, by its index, as get_gpu_health gives it; unknown is not "
    "healthy.",
    ("gpu", "verdict", "simulated"),
)
FINDINGS: Final = Metric(
    "mcp_gpu_findings",
    "gauge",
    "Findings on the node and its GPUs, by kind and severity, as get_gpu_health gives them.",
    ("code", "severity", "simulated"),
)
RECORDER_GPUS: Final = Metric(
    "mcp_gpu_recorder_gpus", "gauge", "GPUs whose last hours are recorded."
)
RECORDER_READ: Final = Metric(
    "mcp_gpu_recorder_last_reading_timestamp_seconds",
    "gauge",
    "When the latest reading on record was taken, in Unix time. No series before the first.",
)
RECORDER_FAILURES: Final = Metric(
    "mcp_gpu_recorder_save_failures_total",
    "counter",
    "Times that the record could not be written to --recorder-directory.",
)

METRICS: Final = (
    NVML_STATE,
    NVML_BLOCKED,
    NVML_SECONDS,
    NVML_ERRORS,
    GENERATION,
    SNAPSHOT_AGE,
    GPUS,
    GPUS_EXPECTED,
    GPU_HEALTH,
    FINDINGS,
    RECORDER_GPUS,
    RECORDER_READ,
    RECORDER_FAILURES,
)


def families(
    collector: Collector, recorder: Recorder, watch: XidWatch, *, expected_gpus: int | None
) -> Iterator[Family]:
    """Of one agent, now. Waits for no reading."""
    snapshot = collector.snapshot
    yield NVML_STATE.one_of(get_args(SnapshotState), snapshot.state)
    yield NVML_BLOCKED.is_now(0.0 if snapshot.waiting is None else snapshot.waiting.seconds)
    yield NVML_SECONDS.is_now(collector.nvml.seconds)
    refused: Counter[str] = Counter()
    for code, count in tuple(collector.nvml.refused.items()):  # another thread counts
        refused[error_name(code)] += count
    yield NVML_ERRORS.by_label(refused)
    yield GENERATION.is_now(snapshot.generation)
    now = time.time()
    read = {"fast": snapshot.fast_at, "slow": snapshot.slow_at}
    yield SNAPSHOT_AGE.by_label(
        {name: max(now - at, 0.0) for name, at in read.items() if at is not None}
    )
    yield GPUS.is_now(snapshot.gpu_count)
    yield GPUS_EXPECTED.is_now(expected_gpus or snapshot.gpu_count_expected)
    bursts = watch.log.bursts(boot_id=watch.boot_id)
    yield from _health(
        assess(snapshot, collector.past(), bursts=bursts, expected_gpus=expected_gpus),
        simulated=str(snapshot.simulated).lower(),
    )
    recorded = recorder.gpus()
    yield RECORDER_GPUS.is_now(len(recorded))
    latest = max((each.read_at for each in recorded if each.read_at is not None), default=None)
    yield RECORDER_READ.is_now(latest)
    yield RECORDER_FAILURES.is_now(recorder.save_failures)


def _health(found: Assessment, *, simulated: str) -> Iterator[Family]:
    yield GPU_HEALTH.series(
        {
            (str(gpu.gpu_index), verdict, simulated): float(gpu.verdict == verdict)
            for gpu in found.gpus
            for verdict in get_args(Verdict)
        }
    )
    findings: Counter[tuple[str, Severity]] = Counter(
        (each.code, each.severity) for each in found.findings
    )
    yield FINDINGS.series(
        {(code, severity, simulated): count for (code, severity), count in findings.items()}
    )
