"""What the units of a GPU did between two samples of its performance monitor (GPM): `Gpm`.

Hopper and later. Older boards have these figures for profilers alone, and not through NVML.
"""

from __future__ import annotations

from typing import Final, Self

from pydantic import Field, model_validator

from mcp_gpu.gpu.wire import Wire, give_reasons

FIRST_SAMPLE: Final = "first_sample"
"""Reason: there is one sample so far, and it takes two."""

NOT_READ: Final = "not_read"
"""Reason: computed on demand, and the demand was not met in time."""


class Gpm(Wire):
    """Means over the time between two samples. Nulls have reasons, as in `Gpu`."""

    seconds: float = 0.0
    """Between the two samples."""
    measured_at: str = ""
    """When the later one was taken, in UTC."""
    sm_activity_percent: float | None = None
    """Multiprocessors that had work: what `utilization_gpu_percent` is taken for and is not."""
    sm_occupancy_percent: float | None = None
    """Warps that were resident, of the most there can be."""
    tensor_any_percent: float | None = None
    """Time that tensor cores worked, with any type; with half precision; the other units alike."""
    tensor_hmma_percent: float | None = None
    dram_bandwidth_percent: float | None = None
    fp64_percent: float | None = None
    fp32_percent: float | None = None
    fp16_percent: float | None = None
    pcie_transmit_bytes_per_second: int | None = None
    """From the GPU; NVML's MiB/s in bytes, as the three below."""
    pcie_receive_bytes_per_second: int | None = None
    nvlink_transmit_bytes_per_second: int | None = None
    """Over all links."""
    nvlink_receive_bytes_per_second: int | None = None
    unavailable: dict[str, str] = Field(default_factory=dict)
    """Field name to the reason why the field is None."""

    @model_validator(mode="after")
    def _every_null_has_a_reason(self) -> Self:
        give_reasons(self, tuple(METRICS), self.unavailable)
        return self


METRICS: Final = {
    "sm_activity_percent": 2,
    "sm_occupancy_percent": 3,
    "tensor_any_percent": 5,
    "tensor_hmma_percent": 7,
    "dram_bandwidth_percent": 10,
    "fp64_percent": 11,
    "fp32_percent": 12,
    "fp16_percent": 13,
    "pcie_transmit_bytes_per_second": 20,
    "pcie_receive_bytes_per_second": 21,
    "nvlink_receive_bytes_per_second": 60,
    "nvlink_transmit_bytes_per_second": 61,
}
"""Field to NVML's number of the metric (nvmlGpmMetricId_t)."""
