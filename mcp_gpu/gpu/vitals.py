"""What is read of a GPU for its health alone: error counters, spare memory, margins, links.

Kept apart from `Gpu`, whose fields are the inventory's contract. As there, what cannot be read is
None and `unavailable` holds the reason; it is never 0.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from mcp_gpu.gpu.wire import Wire, give_reasons


class Link(Wire):
    """One NVLink. Counters since the driver was loaded. Nulls have reasons, as in `Vitals`."""

    index: int
    state: str | None = None
    """active, inactive, sleep or active_traffic_disabled."""
    remote: str | None = None
    """gpu, switch or other: what the link is wired to."""
    replay_errors: int | None = None
    """NVLink 1 to 4, as the two below; field 161."""
    recovery_errors: int | None = None
    crc_errors: int | None = None
    malformed_packet_errors: int | None = None
    """NVLink 5, as all below; fields 206 to 222."""
    buffer_overrun_errors: int | None = None
    receive_errors: int | None = None
    receive_remote_errors: int | None = None
    receive_general_errors: int | None = None
    local_integrity_errors: int | None = None
    transmit_discards: int | None = None
    recoveries_successful: int | None = None
    recoveries_failed: int | None = None
    effective_errors: int | None = None
    effective_ber: float | None = None
    """Bit errors per bit, after correction."""
    symbol_errors: int | None = None
    symbol_ber: float | None = None
    """Symbol errors per symbol, before correction."""
    unavailable: dict[str, str] = Field(default_factory=dict)
    """Field name to the reason why the field is None."""

    @model_validator(mode="after")
    def _every_null_has_a_reason(self) -> Self:
        give_reasons(self, LINK_READINGS, self.unavailable)
        return self


class Vitals(Wire):
    """One GPU's health readings. Counters are since the driver was loaded unless they say more."""

    index: int

    ecc_dram_corrected: int | None = None
    ecc_dram_uncorrected: int | None = None
    ecc_sram_corrected: int | None = None
    ecc_sram_uncorrected: int | None = None
    ecc_dram_corrected_lifetime: int | None = None
    """Over the board's life, as the next three."""
    ecc_dram_uncorrected_lifetime: int | None = None
    ecc_sram_corrected_lifetime: int | None = None
    ecc_sram_uncorrected_lifetime: int | None = None
    sram_threshold_exceeded: bool | None = None
    """NVIDIA's own criterion for a field diagnosis; root only."""

    row_remaps_corrected: int | None = None
    """Rows replaced by spare ones because of corrected errors."""
    row_remaps_uncorrected: int | None = None
    remap_banks_full: int | None = None
    """Banks of memory whose spare rows are all there, as nvml.h's `max`."""
    remap_banks_high: int | None = None
    remap_banks_partial: int | None = None
    remap_banks_low: int | None = None
    remap_banks_none: int | None = None
    """Banks without a spare row left."""
    retired_pages_corrected: int | None = None
    """Pages retired for repeated corrected errors: boards before Ampere."""
    retired_pages_uncorrected: int | None = None
    retired_pages_pending: bool | None = None
    channel_repair_pending: bool | None = None
    tpc_repair_pending: bool | None = None
    unrepairable_memory: bool | None = None

    temperature_shutdown_celsius: int | None = None
    """Absolute thresholds: boards before Ada."""
    temperature_slowdown_celsius: int | None = None
    temperature_gpu_max_celsius: int | None = None
    temperature_memory_max_celsius: int | None = None
    temperature_margin_celsius: int | None = None
    """Ada and later: degrees left until the GPU slows itself down; 0 or less: it does."""
    margin_shutdown_celsius: int | None = None
    """Ada and later: the margin at which it shuts down (about -8), as the next three."""
    margin_slowdown_celsius: int | None = None
    margin_gpu_max_celsius: int | None = None
    margin_memory_max_celsius: int | None = None

    slowed_by_power_cap_seconds: float | None = None
    """Total time with lowered clocks for this reason: software power cap, the common and harmless
    one; sync boost; software thermal; hardware thermal; hardware power brake."""
    slowed_by_sync_boost_seconds: float | None = None
    slowed_by_sw_thermal_seconds: float | None = None
    slowed_by_hw_thermal_seconds: float | None = None
    slowed_by_hw_power_brake_seconds: float | None = None

    pcie_replays: int | None = None
    """Grows by some hundreds on healthy boards; only its rate tells something."""
    pcie_replay_rollovers: int | None = None
    pcie_recoveries: int | None = None
    """Link trainings from L0 (field 169)."""
    pcie_correctable_errors: int | None = None
    pcie_nonfatal_errors: int | None = None
    pcie_fatal_errors: int | None = None
    pcie_unsupported_requests: int | None = None

    links: tuple[Link, ...] = ()
    """The NVLinks that the board has, by index."""
    unavailable: dict[str, str] = Field(default_factory=dict)
    """Field name to the reason why the field is None; `links` where there may be more than the
    tuple holds. Reasons as in `Gpu`."""

    @model_validator(mode="after")
    def _every_null_has_a_reason(self) -> Self:
        give_reasons(self, VITALS_READINGS, self.unavailable)
        return self


LINK_READINGS = tuple(name for name in Link.model_fields if name not in {"index", "unavailable"})
"""The fields of `Link` that are read from the hardware."""

VITALS_READINGS = tuple(
    name for name in Vitals.model_fields if name not in {"index", "links", "unavailable"}
)
"""Those of `Vitals`."""
