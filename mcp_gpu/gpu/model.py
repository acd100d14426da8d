"""What is known of a node's GPUs at one moment: `Snapshot`, `Gpu`, `MigDevice`.

These models are the wire contract of the inventory. They are frozen, flat and in
snake_case with units in the names. A reading that could not be taken is None and
`unavailable` holds the reason under the field's name; it is never 0 and never a guess.
Fields that a newer peer sends and this version does not know are ignored.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mcp_gpu.gpu.gpm import Gpm
from mcp_gpu.gpu.vitals import Vitals
from mcp_gpu.gpu.wire import Wire, give_reasons
from mcp_gpu.gpu.wiring import Wiring

GpuState = Literal["ok", "lost", "unreadable"]
SnapshotState = Literal["starting", "ok", "absent", "failing"]


class MigDevice(Wire):
    """One MIG compute instance of a partitioned GPU. Nulls have reasons, as in `Gpu`."""

    index: int
    """Position among the parent's MIG devices, not an NVML id."""
    uuid: str | None = None
    gpu_instance_id: int | None = None
    compute_instance_id: int | None = None
    profile: str | None = None
    """Such as "1g.10gb"; the name's last word as NVML gives it."""
    multiprocessor_count: int | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    gpm: Gpm | None = None
    """Of its GPU instance, which may hold more than this device."""
    unavailable: dict[str, str] = Field(default_factory=dict)
    """Field name to the reason why the field is None."""

    @model_validator(mode="after")
    def _every_null_has_a_reason(self) -> Self:
        give_reasons(self, MIG_READINGS, self.unavailable)
        return self


class Gpu(Wire):
    """One GPU: identity, configuration and latest readings.

    Every field from `uuid` on may be None, and then `unavailable` names the reason: one of
    `not_supported`, `driver_too_old`, `no_permission`, `deprecated`, `mig_active`, `gpu_lost`,
    `timeout`, `error(CODE)` with NVML's code, or `not_reported` (the agent predates the field); of
    `gpm` also `first_sample` (it takes two, 2 s apart) and `not_read` (not asked for in time).
    """

    index: int
    """NVML index within its node. Stable only until the next driver load; `uuid` is for ever."""
    state: GpuState = "ok"
    """`lost`: off the bus. `unreadable`: NVML lists it and refuses to talk about it, or NVML
    itself is gone."""
    error: str | None = None
    """Why the GPU as a whole cannot be read, and what to do. None while `state` is `ok`."""

    uuid: str | None = None
    name: str | None = None
    brand: str | None = None
    architecture: str | None = None
    compute_capability: str | None = None
    """Such as "9.0"."""
    serial: str | None = None
    board_part_number: str | None = None
    vbios_version: str | None = None
    inforom_version: str | None = None
    minor_number: int | None = None
    """N of /dev/nvidiaN."""
    module_id: int | None = None
    """Position on the baseboard, 1 to 8."""

    pci_bus_id: str | None = None
    """As NVML writes it: "00000000:53:00.0"."""
    pci_device_id: str | None = None
    """Device and vendor, hexadecimal: "233010DE"."""
    pcie_generation_current: int | None = None
    """Falls to 1 on an idle board that saves power; not a fault by itself."""
    pcie_generation_max: int | None = None
    """What GPU and slot can do together."""
    pcie_generation_device_max: int | None = None
    """What the GPU alone can do."""
    pcie_width_current: int | None = None
    """Lanes. Below the maximum for ever on some clouds (T4 and L40S on AWS run x8 of x16)."""
    pcie_width_max: int | None = None

    memory_total_bytes: int | None = None
    """reserved + used + free."""
    memory_reserved_bytes: int | None = None
    memory_used_bytes: int | None = None
    """Without what the driver reserves; with it where that is not told (before R510)."""
    memory_free_bytes: int | None = None
    bar1_total_bytes: int | None = None
    bar1_used_bytes: int | None = None

    persistence_mode: bool | None = None
    compute_mode: str | None = None
    """default, exclusive_process or prohibited."""
    mig_mode_current: bool | None = None
    mig_mode_pending: bool | None = None
    ecc_mode_current: bool | None = None
    ecc_mode_pending: bool | None = None

    nvlink_count: int | None = None
    nvlink_active: int | None = None
    nvlink_version: str | None = None
    """Such as "4.0"."""
    nvlink_speed_mbps: int | None = None
    """Per link, MB/s, as NVML names the unit."""
    nvswitch_link_count: int | None = None
    """How many of the links end at an NVSwitch."""
    fabric_state: str | None = None
    """not_started, in_progress or completed: the fabric manager's registration of this GPU."""
    fabric_status: str | None = None
    """success, or NVML's error once the registration has completed."""
    fabric_clique_id: int | None = None
    fabric_cluster_uuid: str | None = None
    fabric_health: str | None = None
    """healthy, unhealthy or limited_capacity."""

    chassis_serial: str | None = None
    slot_number: int | None = None
    tray_index: int | None = None
    host_id: int | None = None

    power_limit_min_watts: float | None = None
    power_limit_max_watts: float | None = None
    power_limit_default_watts: float | None = None
    power_limit_watts: float | None = None
    """What was asked for."""
    power_limit_enforced_watts: float | None = None
    """The lowest of all limiters: what the board really keeps to."""
    module_power_limit_watts: float | None = None
    """Of the whole Grace module (CPU and GPU)."""

    clock_graphics_mhz: int | None = None
    clock_sm_mhz: int | None = None
    clock_memory_mhz: int | None = None
    clock_video_mhz: int | None = None
    clock_graphics_max_mhz: int | None = None
    clock_sm_max_mhz: int | None = None
    clock_memory_max_mhz: int | None = None
    clock_video_max_mhz: int | None = None
    clock_customer_boost_max_mhz: int | None = None

    numa_node: int | None = None
    """NUMA node of the CPU memory nearest to the GPU."""
    cpu_affinity: str | None = None
    """CPUs of that node, in the kernel's list form: "0-47,96-143"."""
    addressing_mode: str | None = None
    """none, hmm or ats."""
    c2c_mode: bool | None = None
    """Whether the chip-to-chip link to a Grace CPU is on."""
    virtualization_mode: str | None = None
    """none, passthrough, vgpu, host_vgpu or host_vsga."""

    temperature_celsius: int | None = None
    memory_temperature_celsius: int | None = None
    power_draw_watts: float | None = None
    energy_joules: float | None = None
    """Since the driver was loaded."""
    utilization_gpu_percent: int | None = None
    utilization_memory_percent: int | None = None
    throttle_reasons: tuple[str, ...] | None = None
    """Only those that are faults: hw_slowdown, hw_thermal_slowdown, sw_thermal_slowdown,
    hw_power_brake. Empty means none of them now."""

    ecc_uncorrected_volatile: int | None = None
    """Uncorrected memory errors since the driver was loaded."""
    row_remap_pending: bool | None = None
    row_remap_failure: bool | None = None
    recovery_action: str | None = None
    """The driver's own verdict: none, gpu_reset, node_reboot, drain_p2p, drain_and_reset,
    recover_imex, bus_reset or system_reboot."""

    gpm: Gpm | None = None
    """Hopper and later: what the multiprocessors, tensor cores and links really did."""
    mig_devices: tuple[MigDevice, ...] = ()
    unavailable: dict[str, str] = Field(default_factory=dict)
    """Field name to the reason why the field is None; `mig_devices` where there may be more than
    the list holds."""

    @model_validator(mode="after")
    def _every_null_has_a_reason(self) -> Self:
        give_reasons(self, READINGS, self.unavailable)
        return self


READINGS = tuple(
    name
    for name in Gpu.model_fields
    if name not in {"index", "state", "error", "mig_devices", "unavailable"}
)
"""The fields of `Gpu` that are read from the hardware."""

MIG_READINGS = tuple(
    name for name in MigDevice.model_fields if name not in {"index", "unavailable"}
)
"""Those of `MigDevice`."""


class Failure(Wire):
    """Why NVML as a whole cannot be used on a node."""

    code: int
    """NVML's return code."""
    name: str
    """NVML's name for it, such as "DriverNotLoaded"."""
    message: str
    """What it means here and what to do about it."""


class Waiting(Wire):
    """An NVML call that has not returned. The readings beside it are as old as they say."""

    seconds: float
    call: str
    """The C function, such as "nvmlDeviceGetPowerUsage"."""
    gpu_index: int | None = None

    @property
    def message(self) -> str:
        """One sentence for a person or a model."""
        where = "" if self.gpu_index is None else f"GPU {self.gpu_index}, "
        return f"NVML has not answered for {self.seconds:.0f} s ({where}in {self.call})"


class Snapshot(Wire):
    """All that is known of one node's GPUs at one moment. Times are Unix seconds.

    `state` tells three failures apart: `absent` (no NVIDIA library or driver on the node),
    `failing` (there is one and it refuses), and `ok` with single GPUs `lost` or `unreadable`.
    """

    state: SnapshotState = "starting"
    failure: Failure | None = None
    """Set exactly when `state` is `absent` or `failing`."""
    driver_version: str | None = None
    driver_branch: str | None = None
    nvml_version: str | None = None
    cuda_version: str | None = None
    """The newest CUDA that the driver supports, such as "13.0"."""
    confidential_compute: bool | None = None
    gpus: tuple[Gpu, ...] = ()
    """By index. After a failure the last ones known stay: their identities, without readings."""
    vitals: tuple[Vitals, ...] = ()
    """Health readings of the same GPUs, in the same order; taken with the slow readings."""
    wiring: Wiring | None = None
    """Read when somebody asks (`Collector.complete`), as is what `Gpu.gpm` holds."""
    gpu_count: int | None = None
    """How many GPUs NVML counts now."""
    gpu_count_expected: int | None = None
    """The most that it has counted since this process started: fewer now means one vanished."""
    static_at: float | None = None
    """When identity and configuration were read."""
    fast_at: float | None = None
    """When utilisation, power, temperature, clocks and memory were read."""
    slow_at: float | None = None
    """When links, modes, error counters and verdicts were read."""
    generation: int = 0
    """Counts successful NVML initialisations. Handles do not outlive one, and counters may not."""
    simulated: bool = False
    waiting: Waiting | None = None
    missing_symbols: tuple[str, ...] = ()
    """C functions that the driver's library was asked for and does not have."""
    unavailable: dict[str, str] = Field(default_factory=dict)
    """As in `Gpu`, for driver_version, driver_branch, nvml_version, cuda_version and
    confidential_compute once `state` is `ok`."""
