"""Which NVML call gives which field of `Vitals` and of `Link`: as fields.py, for health alone.

All of it is read with the slow readings. Counters of time are nanoseconds, whatever nvidia-smi
prints them as.
"""

from __future__ import annotations

from collections.abc import Callable

from mcp_gpu.gpu.errors import DRIVER_TOO_OLD
from mcp_gpu.gpu.table import FieldValue, Group, Reading, named, one, same

MIG_HIDES_VITALS = frozenset(
    {
        "ecc_dram_corrected",
        "ecc_dram_uncorrected",
        "ecc_sram_corrected",
        "ecc_sram_uncorrected",
        "row_remaps_corrected",
        "row_remaps_uncorrected",
        "remap_banks_full",
        "remap_banks_high",
        "remap_banks_partial",
        "remap_banks_low",
        "remap_banks_none",
    }
)
"""As `fields.MIG_HIDES`."""

_CORRECTED, _UNCORRECTED = range(2)
_VOLATILE, _LIFETIME = range(2)
_DRAM, _SRAM = 2, 7
"""nvmlMemoryLocation_t: every board since Turing counts by these two."""

_SHUTDOWN, _SLOWDOWN, _MEMORY_MAX, _GPU_MAX = range(4)


def _seconds(nanoseconds: int) -> float:
    return nanoseconds / 1e9


def _signed(value: int) -> int:
    """UNVERIFIED: that every driver marks these values as signed."""
    return value - (1 << 32) if value >= 1 << 31 else int(value)


def _error_rate(packed: int) -> float:
    """Mantissa in bits 8 to 11, negative decimal exponent in bits 0 to 7 (nvml.h)."""
    mantissa, exponent = packed >> 8 & 0xF, packed & 0xFF
    return float(f"{mantissa}e-{exponent}")


def _ecc(field: str, *keys: int) -> Reading:
    return one("GetMemoryErrorCounter", field, same, *keys)


def _newer(number: int, field: str, convert: Callable[[int], float] = int) -> FieldValue:
    """A field id that not every driver knows."""
    return FieldValue(number, field, convert, invalid=DRIVER_TOO_OLD)


VITALS = Group(
    "vitals",
    (
        _ecc("ecc_dram_corrected", _CORRECTED, _VOLATILE, _DRAM),
        _ecc("ecc_dram_uncorrected", _UNCORRECTED, _VOLATILE, _DRAM),
        _ecc("ecc_sram_corrected", _CORRECTED, _VOLATILE, _SRAM),
        _ecc("ecc_sram_uncorrected", _UNCORRECTED, _VOLATILE, _SRAM),
        _ecc("ecc_dram_corrected_lifetime", _CORRECTED, _LIFETIME, _DRAM),
        _ecc("ecc_dram_uncorrected_lifetime", _UNCORRECTED, _LIFETIME, _DRAM),
        _ecc("ecc_sram_corrected_lifetime", _CORRECTED, _LIFETIME, _SRAM),
        _ecc("ecc_sram_uncorrected_lifetime", _UNCORRECTED, _LIFETIME, _SRAM),
        Reading(
            "nvmlDeviceGetSramEccErrorStatus",
            ("sram_threshold_exceeded",),
            lambda status: bool(status.bThresholdExceeded),
            structs=("c_nvmlEccSramErrorStatus_v1_t",),
        ),
        Reading(
            "nvmlDeviceGetRemappedRows",
            ("row_remaps_corrected", "row_remaps_uncorrected"),
            lambda rows: (rows[0], rows[1]),
        ),
        Reading(
            "nvmlDeviceGetRowRemapperHistogram",
            (
                "remap_banks_full",
                "remap_banks_high",
                "remap_banks_partial",
                "remap_banks_low",
                "remap_banks_none",
            ),
            lambda banks: (banks.max, banks.high, banks.partial, banks.low, banks.none),
        ),
        # For drivers without the field values: a list of addresses for each cause.
        one("GetRetiredPages", "retired_pages_corrected", len, 0),
        one("GetRetiredPages", "retired_pages_uncorrected", len, 1),
        one("GetRetiredPagesPendingStatus", "retired_pages_pending", bool),
        Reading(
            "nvmlDeviceGetRepairStatus",
            ("channel_repair_pending", "tpc_repair_pending"),
            lambda pending: (bool(pending[0]), bool(pending[1])),
        ),
        one("GetUnrepairableMemoryFlag_v1", "unrepairable_memory", bool),
        one("GetTemperatureThreshold", "temperature_shutdown_celsius", same, _SHUTDOWN),
        one("GetTemperatureThreshold", "temperature_slowdown_celsius", same, _SLOWDOWN),
        one("GetTemperatureThreshold", "temperature_gpu_max_celsius", same, _GPU_MAX),
        one("GetTemperatureThreshold", "temperature_memory_max_celsius", same, _MEMORY_MAX),
        one("GetMarginTemperature", "temperature_margin_celsius"),
        one("GetPcieReplayCounter", "pcie_replays"),
    ),
    (
        _newer(29, "retired_pages_corrected"),
        _newer(30, "retired_pages_uncorrected"),
        _newer(31, "retired_pages_pending", bool),
        FieldValue(74, "slowed_by_power_cap_seconds", _seconds),
        FieldValue(76, "slowed_by_sync_boost_seconds", _seconds),
        _newer(94, "pcie_replays"),
        FieldValue(95, "pcie_replay_rollovers", int),
        _newer(142, "row_remaps_corrected"),
        _newer(143, "row_remaps_uncorrected"),
        _newer(169, "pcie_recoveries"),
        _newer(173, "pcie_correctable_errors"),
        _newer(179, "pcie_nonfatal_errors"),
        _newer(180, "pcie_fatal_errors"),
        _newer(181, "pcie_unsupported_requests"),
        # Signed distances, on boards whose limits are not degrees.
        _newer(193, "margin_shutdown_celsius", _signed),
        _newer(194, "margin_slowdown_celsius", _signed),
        _newer(195, "margin_memory_max_celsius", _signed),
        _newer(196, "margin_gpu_max_celsius", _signed),
        _newer(269, "slowed_by_sw_thermal_seconds", _seconds),
        _newer(270, "slowed_by_hw_thermal_seconds", _seconds),
        _newer(271, "slowed_by_hw_power_brake_seconds", _seconds),
    ),
)

# --- NVLinks: the scope of these field values is the number of the link ------------------------

PER_LINK = frozenset({*range(161, 167), *range(201, 223), *range(235, 251)})
"""Every field id of nvml.h that is about one link."""

LINK_STATES = {0: "inactive", 1: "active", 2: "sleep", 3: "active_traffic_disabled"}
_DEVICE_TYPES = {0: "gpu", 1: "other", 2: "switch", 0xFF: "other"}

LINK_STATE = FieldValue(165, "state", named(LINK_STATES), invalid=DRIVER_TOO_OLD)
LINK_STATE_GETTER = one("GetNvLinkState", "state", named(LINK_STATES))
LINK_REMOTE = one("GetNvLinkRemoteDeviceType", "remote", named(_DEVICE_TYPES))

LINK_COUNTERS = (
    _newer(161, "replay_errors"),
    _newer(162, "recovery_errors"),
    _newer(163, "crc_errors"),
)
"""NVLink 1 to 4."""

LINK_COUNTER_GETTERS = (
    one("GetNvLinkErrorCounter", "replay_errors", same, 0),
    one("GetNvLinkErrorCounter", "recovery_errors", same, 1),
    one("GetNvLinkErrorCounter", "crc_errors", same, 2),
)
"""The same, one call each; by link and counter."""

LINK5_COUNTERS = (
    _newer(206, "malformed_packet_errors"),
    _newer(207, "buffer_overrun_errors"),
    _newer(208, "receive_errors"),
    _newer(209, "receive_remote_errors"),
    _newer(210, "receive_general_errors"),
    _newer(211, "local_integrity_errors"),
    _newer(212, "transmit_discards"),
    _newer(213, "recoveries_successful"),
    _newer(214, "recoveries_failed"),
    _newer(219, "effective_errors"),
    _newer(220, "effective_ber", _error_rate),
    _newer(221, "symbol_errors"),
    _newer(222, "symbol_ber", _error_rate),
)
"""NVLink 5 and later, which have none of the former."""
