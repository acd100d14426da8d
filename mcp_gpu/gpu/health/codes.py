"""The closed list of what a finding can be: `Code`, its severities, actions and authority.

docs/health.md shows this list; tests hold both to what the rules really say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mcp_gpu.gpu.actions import advice as advice_on
from mcp_gpu.gpu.health.model import Confidence, Evidence, Finding, Severity

NVML_H: Final = "nvml.h"
MEMORY_GUIDE: Final = "NVIDIA GPU memory error management guide"
PAGES_GUIDE: Final = "NVIDIA dynamic page retirement guide and DCGM's limits"
XID_CATALOGUE: Final = "NVIDIA Xid catalogue"
DCGM: Final = "DCGM health checks"
FIELD: Final = "field experience"
"""No text of NVIDIA's says so; common knowledge of those who run such machines."""


@dataclass(frozen=True, slots=True)
class Code:
    """One kind of finding."""

    name: str
    severities: tuple[Severity, ...]
    """Those that it may have, worst first."""
    actions: tuple[str, ...]
    """Those that it may ask for."""
    source: str
    meaning: str

    def finding(
        self,
        gpu_index: int | None,
        title: str,
        evidence: tuple[Evidence, ...],
        *,
        severity: Severity | None = None,
        action: str | None = None,
        advice: str | None = None,
        confidence: Confidence = "high",
    ) -> Finding:
        """A finding of this kind: the worst severity and the first action unless told."""
        chosen = action or self.actions[0]
        return Finding(
            code=self.name,
            severity=severity or self.severities[0],
            gpu_index=gpu_index,
            title=title,
            evidence=evidence,
            action=chosen,
            advice=advice or advice_on(chosen, gpu_index),
            confidence=confidence,
            source=self.source,
        )


_LIST: Final = (
    Code(
        "recovery_action",
        ("critical", "warning"),
        (
            "RESET_GPU", "REBOOT_NODE", "DRAIN_P2P", "DRAIN_AND_RESET", "RECOVER_IMEX",
            "BUS_RESET", "SYSTEM_REBOOT", "UNKNOWN",
        ),
        f"{NVML_H}: recovery action (field 230, the value of Xid 154)",
        "The driver itself asks for a recovery, by what is read or by its last Xid 154. Only "
        "DRAIN_AND_RESET, reduced capacity, and what this version does not know are no more than "
        "a warning.",
    ),
    Code(
        "gpu_lost", ("critical",), ("REBOOT_NODE",),
        f"{NVML_H}: GPU_IS_LOST; {XID_CATALOGUE}: 79",
        "The GPU has fallen off the bus, or is not counted any more.",
    ),
    Code(
        "reset_required", ("critical",), ("RESET_GPU",), f"{NVML_H}: RESET_REQUIRED",
        "The driver refuses calls until the GPU has been reset.",
    ),
    Code(
        "gpu_unreadable", ("critical",), ("REBOOT_NODE", "RESET_GPU", "CHECK_SEATING",
        "RUN_FIELD_DIAG"), f"{NVML_H}: the return code; {FIELD}",
        "NVML counts the GPU and gives no handle or no answer for it.",
    ),
    Code(
        "gpu_no_permission", ("info",), ("CHECK_ACCESS",), f"{NVML_H}: NO_PERMISSION",
        "This agent may not open the GPU, as in a container that is given some of a node's. "
        "The GPU is unknown, not sick.",
    ),
    Code(
        "nvml_absent", ("critical", "warning", "info"), ("RELOAD_DRIVER", "NONE"),
        f"{NVML_H}: LIBRARY_NOT_FOUND, DRIVER_NOT_LOADED",
        "No driver or no library of it: a node without GPU, or one whose driver is not ready. "
        "Critical where GPUs are configured to be, a warning where this agent has seen some.",
    ),
    Code(
        "driver_mismatch", ("critical",), ("RELOAD_DRIVER",),
        f"{NVML_H}: LIB_RM_VERSION_MISMATCH",
        "The library and the loaded kernel module are of different versions: new CUDA programs "
        "fail.",
    ),
    Code(
        "nvml_no_permission", ("info",), ("CHECK_ACCESS",), f"{NVML_H}: NO_PERMISSION",
        "This agent may not open the driver's control device. The node is unknown, not sick.",
    ),
    Code(
        "nvml_failing", ("critical", "warning"), ("REBOOT_NODE", "CHECK_ACCESS", "CHECK_SEATING",
        "RUN_FIELD_DIAG"), f"{NVML_H}: the return code; {FIELD}",
        "NVML does not start. A warning where the cause may be this agent's container alone.",
    ),
    Code(
        "nvml_not_answering", ("critical", "warning", "info"), ("REBOOT_NODE", "NONE"), FIELD,
        "A call into the driver has not returned: info at first, a warning from 5 s on, "
        "critical from 45 s on, the driver's own deadline for its firmware.",
    ),
    Code(
        "gsp_timeout", ("critical",), ("RESET_GPU",), f"{XID_CATALOGUE}: 119, 120",
        "A call into the driver does not return, and the kernel log says that the GPU's "
        "firmware has stopped. Of medium confidence where it is not known which GPU is waited for.",
    ),
    Code(
        "readings_stale", ("warning",), ("NONE",), "this agent",
        "The readings are old although no call is blocked: verdicts from them would be guesses.",
    ),
    Code(
        "gpu_count_low", ("critical",), ("REBOOT_NODE",), FIELD,
        "Fewer GPUs than expected, beyond those that are reported as lost.",
    ),
    Code(
        "ecc_uncorrected_rising", ("critical", "warning"), ("RESET_GPU", "DRAIN_AND_RESET"),
        f"{MEMORY_GUIDE}; {XID_CATALOGUE}: 48, 94, 95",
        "Memory errors that could not be corrected, and more of them within the window. A warning "
        "where the driver's recovery action says that they were contained.",
    ),
    Code(
        "ecc_uncorrected", ("warning",), ("RESET_GPU", "DRAIN_AND_RESET"),
        f"{MEMORY_GUIDE}; {DCGM}, which fail a GPU for one",
        "Memory errors that could not be corrected since the driver was loaded or the GPU reset.",
    ),
    Code(
        "sram_threshold_exceeded", ("critical",), ("RUN_FIELD_DIAG",), MEMORY_GUIDE,
        "More uncorrectable SRAM errors than NVIDIA lets a board have.",
    ),
    Code(
        "row_remap_failure", ("critical",), ("RUN_FIELD_DIAG",),
        f"{MEMORY_GUIDE}; {XID_CATALOGUE}: 64",
        "A bad memory row could not be replaced by a spare one.",
    ),
    Code(
        "row_remap_pending", ("warning",), ("RESET_GPU", "DRAIN_AND_RESET"),
        f"{MEMORY_GUIDE}; {XID_CATALOGUE}: 63",
        "A bad memory row will be replaced at the next reset; what runs is not in danger.",
    ),
    Code(
        "row_remap_exhausted", ("warning",), ("NONE",), f"{NVML_H}: row remapper histogram",
        "Banks of memory without a spare row: the next bad row there cannot be replaced.",
    ),
    Code(
        "memory_unrepairable", ("critical",), ("RUN_FIELD_DIAG",),
        f"{NVML_H}: unrepairable memory flag",
        "Memory that no repair mechanism can mend.",
    ),
    Code(
        "repair_pending", ("warning",), ("RESET_GPU",), f"{NVML_H}: repair status",
        "A memory channel or TPC will be replaced by a spare one at the next reset.",
    ),
    Code(
        "retired_pages_limit", ("critical", "warning"), ("RUN_FIELD_DIAG", "NONE"), PAGES_GUIDE,
        "Boards before Ampere: 63 retired pages, the limit of the field diagnostic; a warning "
        "above 15 for uncorrected errors.",
    ),
    Code(
        "retired_pages_pending", ("warning",), ("RESET_GPU",), PAGES_GUIDE,
        "Boards before Ampere: a bad memory page will be retired at the next reset.",
    ),
    Code(
        "gpu_hot", ("critical", "warning"), ("CHECK_COOLING",), f"{NVML_H}: thresholds, T.Limit",
        "The GPU is as hot as it may be (warning), or so hot that its hardware slows it down.",
    ),
    Code(
        "memory_hot", ("warning",), ("CHECK_COOLING",), f"{NVML_H}: thresholds",
        "The memory is as hot as it may be.",
    ),
    Code(
        "hw_thermal_slowdown", ("warning", "info"), ("CHECK_COOLING", "NONE"),
        f"{NVML_H}: clock event reasons; {DCGM}",
        "The hardware has slowed the GPU down for heat: a warning from 1 % of the window on.",
    ),
    Code(
        "sw_thermal_slowdown", ("warning", "info"), ("CHECK_COOLING", "NONE"),
        f"{NVML_H}: clock event reasons",
        "The driver has slowed the GPU down for heat: a warning from 10 % of the window on.",
    ),
    Code(
        "hw_power_brake", ("warning", "info"), ("CHECK_POWER", "NONE"),
        f"{NVML_H}: clock event reasons",
        "A signal from outside the GPU has slowed it down: a warning from 1 % of the window on.",
    ),
    Code(
        "slowed_now", ("info",), ("NONE",), f"{NVML_H}: clock event reasons",
        "The hardware slows the GPU down at this moment and no counter says why or how long.",
    ),
    Code(
        "pcie_width_low", ("warning",), ("CHECK_SEATING",), FIELD,
        "Fewer PCIe lanes than at least two peers of the same model in the node have.",
    ),
    Code(
        "pcie_generation_low", ("warning",), ("CHECK_SEATING",), FIELD,
        "Under load, twice in a row, a slower PCIe generation than at least two peers of the "
        "same model under load.",
    ),
    Code(
        "pcie_replays", ("warning",), ("CHECK_SEATING",), f"{DCGM}: replay rate",
        "More PCIe replays per minute than a healthy link of this speed and width has.",
    ),
    Code(
        "pcie_errors", ("critical", "warning"), ("CHECK_SEATING",),
        "PCI Express: advanced error reporting",
        "Fatal (critical) or non-fatal PCIe errors within the window.",
    ),
    Code(
        "nvlink_down", ("critical", "warning"), ("RESET_GPU",), f"{DCGM}; {XID_CATALOGUE}: 74, 149",
        "NVLinks that should be up are not, by the board's count, its peers or its own past. A "
        "warning where none is up on the whole node: it may be meant so.",
    ),
    Code(
        "nvlink_errors", ("critical", "warning"), ("INVESTIGATE_LINK_SI",), DCGM,
        "NVLink 1 to 4: replays or recoveries within the window, or CRC errors, critical from "
        "100 a second on.",
    ),
    Code(
        "nvlink_recovery_failed", ("critical",), ("INVESTIGATE_LINK_SI",),
        f"{NVML_H}: fields 206 to 222; {DCGM}",
        "NVLink 5: a link could not be brought back within the window.",
    ),
    Code(
        "nvlink_bit_errors", ("warning", "info"), ("INVESTIGATE_LINK_SI", "NONE"),
        f"{DCGM}: effective bit error rate",
        "NVLink 5: an effective bit error rate above 1e-12; info for the symbol error rate.",
    ),
    Code(
        "nvlink5_errors", ("warning",), ("INVESTIGATE_LINK_SI",),
        f"{NVML_H}: fields 206 to 222",
        "NVLink 5: packets or buffers in error within the window.",
    ),
    Code(
        "fabric_not_ready", ("critical", "warning"), ("RESTART_FM", "NONE"),
        f"{NVML_H}: fabric state",
        "The fabric manager has not registered the GPU (critical), or is still at it (warning): "
        "CUDA does not start until then. Nothing to do in its first 5 minutes.",
    ),
    Code(
        "fabric_failed", ("critical",), ("RESTART_FM",), f"{NVML_H}: fabric status",
        "The registration with the NVLink fabric has ended with an error.",
    ),
    Code(
        "fabric_unhealthy", ("critical", "warning"), ("RESTART_FM",), f"{NVML_H}: fabric health",
        "The NVLink fabric calls this GPU's part of it unhealthy, or of limited capacity "
        "(warning).",
    ),
    Code(
        "mig_mode_pending", ("warning",), ("RESET_GPU",), f"{NVML_H}: MIG mode",
        "MIG has been switched and the switch waits for a reset.",
    ),
    Code(
        "ecc_mode_pending", ("warning",), ("RESET_GPU",), f"{NVML_H}: ECC mode",
        "ECC has been switched and the switch waits for a reset.",
    ),
    Code(
        "persistence_off", ("info",), ("NONE",), "NVIDIA driver persistence guide",
        "The driver lets go of idle GPUs: the next program waits for 1 to 3 s per GPU, and "
        "what the driver counts starts anew.",
    ),
    Code(
        "xid", ("critical", "warning"),
        (
            "RESET_GPU", "DRAIN_AND_RESET", "RESTART_VM", "REBOOT_NODE", "CHECK_SEATING",
            "UPDATE_SW_FW", "CONTACT_SUPPORT", "NONE",
        ),
        XID_CATALOGUE,
        "An Xid of this boot that asks for at least a reset, and nothing that is read now says "
        "that it is over. A warning from 10 minutes on: a reset since then would leave no trace.",
    ),
    Code(
        "sxid", ("warning",), ("NONE",), "the NVSwitch driver's word; Fabric Manager user guide",
        "An error of an NVSwitch that its driver calls fatal. What it asks for stands in the "
        "user guide alone; a GPU that is reset may cause one.",
    ),
    Code(
        "xid_past", ("info",), ("NONE",), f"{XID_CATALOGUE}; {NVML_H}: recovery action",
        "Such an Xid, and what is read now contradicts it: since cleared, or it needed nothing.",
    ),
)  # fmt: skip

CODES: Final = {code.name: code for code in _LIST}
"""By name; the order is that of importance within one severity."""
