"""Which NVML call gives which field of `Gpu`: a table, with the conversions it needs.

Calls, structs and field ids are named here; nvml.py, the only module that imports the binding,
finds them there. Three groups by how often they are worth asking for: `STATIC` once per
initialisation, `SLOW` for what an operator or a fault changes, `FAST` for what moves all the
time. vital_fields.py has the table of `Vitals`.
"""

from __future__ import annotations

from collections.abc import Iterable
from ctypes import Structure
from typing import Any
from uuid import UUID

from mcp_gpu.gpu.errors import DRIVER_TOO_OLD, NOT_SUPPORTED, Code
from mcp_gpu.gpu.table import FieldValue, Group, Missing, Reading, named, one, raw_bytes, same, text

_MASK_WORDS = 16
"""64-bit words of a CPU or NUMA mask: 1,024 bits, more than any machine with these GPUs has."""

_MEMORY_INFO_V2 = 0x02000028
"""The struct version. Plain `2` is refused with code 25."""

_MODULE_SCOPE = 1
"""Field values of the Grace module, where 0 is the GPU."""

_PLATFORM_UNSET = 0xFF
"""UNVERIFIED: a slot, tray or host byte of a chassis that has none."""

MIG_HIDES = frozenset(
    {
        "utilization_gpu_percent",
        "utilization_memory_percent",
        "row_remap_pending",
        "row_remap_failure",
        "ecc_uncorrected_volatile",
    }
)
"""What answers NOT_SUPPORTED because MIG is on, not because the board lacks it."""


def bit_list(words: Iterable[int]) -> str:
    """A mask as the kernel lists CPUs: "0-47,96-143"."""
    bits = [
        64 * index + bit for index, word in enumerate(words) for bit in range(64) if word >> bit & 1
    ]
    ranges: list[list[int]] = []
    for bit in bits:
        if ranges and ranges[-1][1] == bit - 1:
            ranges[-1][1] = bit
        else:
            ranges.append([bit, bit])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def _watts(milliwatts: int) -> float:
    return milliwatts / 1000


def _cpus(words: Iterable[int]) -> str | Missing:
    return bit_list(words) or Missing(NOT_SUPPORTED)


def _numa_node(words: Iterable[int]) -> int | Missing:
    nodes = bit_list(words)
    return int(nodes.split(",")[0].split("-")[0]) if nodes else Missing(NOT_SUPPORTED)


def _fabric(info: Any) -> tuple[Any, ...]:
    if info.state == 0:
        return (Missing(NOT_SUPPORTED),) * 5
    state = FABRIC_STATES.get(info.state, f"unknown({info.state})")
    if info.state != 3:
        # Clique, cluster and health mean something only after registration.
        return (state, *(Missing(f"error({Code.NOT_READY})"),) * 4)
    if not hasattr(info, "healthSummary"):
        health: str | Missing = Missing(DRIVER_TOO_OLD)
    elif info.healthSummary == 0:
        health = Missing(NOT_SUPPORTED)
    else:
        health = FABRIC_HEALTH.get(info.healthSummary, f"unknown({info.healthSummary})")
    status = "success" if info.status == 0 else f"error({info.status})"
    return state, status, info.cliqueId, str(UUID(bytes=bytes(info.clusterUuid))), health


def _platform(info: Structure) -> tuple[Any, ...]:
    bytes_ = (raw_bytes(info, name)[0] for name in ("slotNumber", "trayIndex", "hostId"))
    return (
        text(raw_bytes(info, "chassisSerialNumber")),
        *(Missing(NOT_SUPPORTED) if byte == _PLATFORM_UNSET else byte for byte in bytes_),
    )


def pci_address(info: Any) -> str | Missing:
    return text(raw_bytes(info, "busId"))


def _pci(info: Any) -> tuple[Any, ...]:
    return pci_address(info), f"{info.pciDeviceId:08X}"


def _throttle(mask: int) -> tuple[str, ...]:
    return tuple(name for bit, name in THROTTLE_FAULTS.items() if mask & bit)


ARCHITECTURES = {
    2: "Kepler", 3: "Maxwell", 4: "Pascal", 5: "Volta", 6: "Turing", 7: "Ampere",
    8: "Ada Lovelace", 9: "Hopper", 10: "Blackwell", 13: "Rubin",
}  # fmt: skip
BRANDS = {
    1: "Quadro", 2: "Tesla", 3: "NVS", 4: "GRID", 5: "GeForce", 6: "Titan", 12: "Quadro RTX",
    13: "NVIDIA RTX", 14: "NVIDIA", 15: "GeForce RTX", 16: "Titan RTX",
}  # fmt: skip
COMPUTE_MODES = {0: "default", 1: "exclusive_thread", 2: "prohibited", 3: "exclusive_process"}
ADDRESSING_MODES = {0: "none", 1: "hmm", 2: "ats"}
VIRTUALIZATION_MODES = {0: "none", 1: "passthrough", 2: "vgpu", 3: "host_vgpu", 4: "host_vsga"}
FABRIC_STATES = {1: "not_started", 2: "in_progress", 3: "completed"}
FABRIC_HEALTH = {1: "healthy", 2: "unhealthy", 3: "limited_capacity"}
NVLINK_VERSIONS = {
    1: "1.0", 2: "2.0", 3: "2.2", 4: "3.0", 5: "3.1", 6: "4.0", 7: "5.0", 8: "6.0",
}  # fmt: skip
RECOVERY_ACTIONS = {
    0: "none", 1: "gpu_reset", 2: "node_reboot", 3: "drain_p2p", 4: "drain_and_reset",
    5: "recover_imex", 6: "bus_reset", 7: "system_reboot",
}  # fmt: skip
THROTTLE_FAULTS = {
    0x08: "hw_slowdown",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake",
}
"""The other clock event reasons (idle, application clocks, power cap, sync boost, display) are
set on healthy boards too."""

_GRAPHICS, _SM, _MEMORY, _VIDEO = range(4)


STATIC = Group(
    "static",
    (
        one("GetUUID", "uuid", text),
        one("GetName", "name", text),
        one("GetBrand", "brand", named(BRANDS)),
        one("GetArchitecture", "architecture", named(ARCHITECTURES)),
        one("GetCudaComputeCapability", "compute_capability", lambda cc: f"{cc[0]}.{cc[1]}"),
        one("GetSerial", "serial", text),
        one("GetBoardPartNumber", "board_part_number", text),
        one("GetVbiosVersion", "vbios_version", text),
        one("GetInforomImageVersion", "inforom_version", text),
        one("GetMinorNumber", "minor_number"),
        one("GetModuleId", "module_id"),
        Reading("nvmlDeviceGetPciInfo_v3", ("pci_bus_id", "pci_device_id"), _pci),
        one("GetMaxPcieLinkGeneration", "pcie_generation_max"),
        one("GetGpuMaxPcieLinkGeneration", "pcie_generation_device_max"),
        one("GetMaxPcieLinkWidth", "pcie_width_max"),
        Reading(
            "nvmlDeviceGetPlatformInfo",
            ("chassis_serial", "slot_number", "tray_index", "host_id"),
            _platform,
            structs=("c_nvmlPlatformInfo_v2_t",),
        ),
        Reading(
            "nvmlDeviceGetPowerManagementLimitConstraints",
            ("power_limit_min_watts", "power_limit_max_watts"),
            lambda limits: tuple(_watts(limit) for limit in limits),
        ),
        one("GetPowerManagementDefaultLimit", "power_limit_default_watts", _watts),
        one("GetMaxClockInfo", "clock_graphics_max_mhz", same, _GRAPHICS),
        one("GetMaxClockInfo", "clock_sm_max_mhz", same, _SM),
        one("GetMaxClockInfo", "clock_memory_max_mhz", same, _MEMORY),
        one("GetMaxClockInfo", "clock_video_max_mhz", same, _VIDEO),
        one("GetMaxCustomerBoostClock", "clock_customer_boost_max_mhz", same, _GRAPHICS),
        one("GetMemoryAffinity", "numa_node", _numa_node, _MASK_WORDS, 0),
        one("GetCpuAffinityWithinScope", "cpu_affinity", _cpus, _MASK_WORDS, 0),
        one("GetAddressingMode", "addressing_mode", named(ADDRESSING_MODES)),
        one("GetC2cModeInfoV", "c2c_mode", lambda info: bool(info.isC2cEnabled)),
        one("GetVirtualizationMode", "virtualization_mode", named(VIRTUALIZATION_MODES)),
    ),
)

SLOW = Group(
    "slow",
    (
        # First: whether MIG is on decides what other refusals mean.
        Reading(
            "nvmlDeviceGetMigMode",
            ("mig_mode_current", "mig_mode_pending"),
            lambda modes: tuple(bool(mode) for mode in modes),
        ),
        one("GetCurrPcieLinkGeneration", "pcie_generation_current"),
        one("GetCurrPcieLinkWidth", "pcie_width_current"),
        one("GetPersistenceMode", "persistence_mode", bool),
        one("GetComputeMode", "compute_mode", named(COMPUTE_MODES)),
        Reading(
            "nvmlDeviceGetEccMode",
            ("ecc_mode_current", "ecc_mode_pending"),
            lambda modes: tuple(bool(mode) for mode in modes),
        ),
        one("GetNvLinkVersion", "nvlink_version", named(NVLINK_VERSIONS), 0),
        Reading(
            "nvmlDeviceGetGpuFabricInfoV",
            (
                "fabric_state",
                "fabric_status",
                "fabric_clique_id",
                "fabric_cluster_uuid",
                "fabric_health",
            ),
            _fabric,
            structs=("c_nvmlGpuFabricInfo_v3_t", "c_nvmlGpuFabricInfo_v2_t"),
        ),
        one("GetPowerManagementLimit", "power_limit_watts", _watts),
        one("GetEnforcedPowerLimit", "power_limit_enforced_watts", _watts),
        # 1: uncorrected, 0: since the driver was loaded.
        one("GetTotalEccErrors", "ecc_uncorrected_volatile", same, 1, 0),
        Reading(
            "nvmlDeviceGetRemappedRows",
            ("row_remap_pending", "row_remap_failure"),
            lambda rows: (bool(rows[2]), bool(rows[3])),
        ),
    ),
    (
        FieldValue(91, "nvlink_count", int),
        FieldValue(147, "nvswitch_link_count", int),
        FieldValue(164, "nvlink_speed_mbps", int, invalid=DRIVER_TOO_OLD),
        # Only a Grace module has the scope, and every driver for one knows the id.
        FieldValue(
            192, "module_power_limit_watts", _watts, scope=_MODULE_SCOPE, invalid=NOT_SUPPORTED
        ),
    ),
)

FAST = Group(
    "fast",
    (
        Reading(
            "nvmlDeviceGetMemoryInfo",
            (
                "memory_total_bytes",
                "memory_reserved_bytes",
                "memory_used_bytes",
                "memory_free_bytes",
            ),
            lambda memory: (memory.total, memory.reserved, memory.used, memory.free),
            (_MEMORY_INFO_V2,),
        ),
        # All that drivers before R510 have; it counts the reserved part as used.
        Reading(
            "nvmlDeviceGetMemoryInfo",
            ("memory_total_bytes", "memory_used_bytes", "memory_free_bytes"),
            lambda memory: (memory.total, memory.used, memory.free),
        ),
        Reading(
            "nvmlDeviceGetBAR1MemoryInfo",
            ("bar1_total_bytes", "bar1_used_bytes"),
            lambda memory: (memory.bar1Total, memory.bar1Used),
        ),
        Reading(
            "nvmlDeviceGetUtilizationRates",
            ("utilization_gpu_percent", "utilization_memory_percent"),
            lambda rates: (rates.gpu, rates.memory),
        ),
        one("GetTemperatureV", "temperature_celsius", same, 0),
        # Deprecated, and all that drivers before R570 have.
        one("GetTemperature", "temperature_celsius", same, 0),
        one("GetPowerUsage", "power_draw_watts", _watts),
        one("GetClockInfo", "clock_graphics_mhz", same, _GRAPHICS),
        one("GetClockInfo", "clock_sm_mhz", same, _SM),
        one("GetClockInfo", "clock_memory_mhz", same, _MEMORY),
        one("GetClockInfo", "clock_video_mhz", same, _VIDEO),
        one("GetCurrentClocksEventReasons", "throttle_reasons", _throttle),
        # Its name before R535.
        one("GetCurrentClocksThrottleReasons", "throttle_reasons", _throttle),
    ),
    (
        FieldValue(82, "memory_temperature_celsius", int),
        FieldValue(83, "energy_joules", lambda millijoules: millijoules / 1000),
        FieldValue(230, "recovery_action", named(RECOVERY_ACTIONS), invalid=DRIVER_TOO_OLD),
    ),
)

MIG_DEVICES = "mig_devices"
"""Belongs to `SLOW`, where MIG is on."""

SYSTEM = (
    Reading("nvmlSystemGetDriverVersion", ("driver_version",), text),
    Reading(
        "nvmlSystemGetDriverBranch",
        ("driver_branch",),
        lambda info: text(raw_bytes(info, "branch")),
    ),
    Reading("nvmlSystemGetNVMLVersion", ("nvml_version",), text),
    Reading(
        "nvmlSystemGetCudaDriverVersion_v2",
        ("cuda_version",),
        lambda version: f"{version // 1000}.{version % 1000 // 10}",
    ),
    Reading(
        "nvmlSystemGetConfComputeState",
        ("confidential_compute",),
        lambda state: state.ccFeature == 1,
    ),
)

MIG = (
    Reading("nvmlDeviceGetUUID", ("uuid",), text),
    Reading(
        "nvmlDeviceGetName",
        ("profile",),
        # "NVIDIA A100-SXM4-80GB MIG 1g.10gb"
        lambda name: text(name.partition(b" MIG ")[2]),
    ),
    Reading("nvmlDeviceGetGpuInstanceId", ("gpu_instance_id",), same),
    Reading("nvmlDeviceGetComputeInstanceId", ("compute_instance_id",), same),
    Reading(
        "nvmlDeviceGetAttributes_v2",
        ("multiprocessor_count",),
        lambda attributes: attributes.multiprocessorCount,
    ),
    Reading(
        "nvmlDeviceGetMemoryInfo",
        ("memory_total_bytes", "memory_used_bytes"),
        lambda memory: (memory.total, memory.used),
    ),
)
