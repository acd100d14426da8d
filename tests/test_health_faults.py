"""Faults set on a simulated node while it is read: each is found, by its name, and nothing else."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from mcp_gpu.gpu import simulator
from mcp_gpu.gpu.errors import NvmlUnavailable
from mcp_gpu.gpu.health.assess import assess
from mcp_gpu.gpu.health.model import Assessment
from mcp_gpu.gpu.history import History
from mcp_gpu.gpu.nvml import Nvml
from mcp_gpu.gpu.reader import Reader
from mcp_gpu.gpu.simulator.binding import installed
from mcp_gpu.gpu.simulator.faults import (
    Ecc,
    EccPending,
    Fabric,
    Fault,
    Lost,
    MemoryTemperature,
    MigPending,
    NoPermission,
    NvlinkBer,
    NvlinkDown,
    NvlinkErrors,
    PcieErrors,
    PcieLink,
    PcieReplays,
    PersistenceOff,
    PowerBrake,
    RecoveryAction,
    Refused,
    RemapExhausted,
    RepairPending,
    RetiredPages,
    RowRemap,
    SramThreshold,
    Temperature,
    Throttle,
    Unreadable,
    UnrepairableMemory,
    Vanished,
    WholeNode,
)
from support.readings import PERIOD, T0

GPU = 2


def course(
    profile: str, *faults: Fault, driver: str | None = None, reopen: bool = False
) -> Assessment:
    """Two healthy readings, then three with the faults, by one reader of four GPUs.

    Args:
        driver: instead of the profile's own.
        reopen: whether NVML is initialised anew once, as the collector does after a loss.
    """
    moment = [T0]
    node = simulator.Node("node", profile, gpus=4, driver=driver, load=0.9, clock=lambda: moment[0])
    history = History()
    with installed(node):
        reader = Reader(Nvml(), clock=lambda: moment[0])
        try:
            reader.open()
            for step in range(5):
                moment[0] = T0 + PERIOD * step
                if step == 2:
                    node.faults = faults
                if step == 3 and reopen:
                    reader.close()
                    reader.open()
                reader.read_slow()
                snapshot = reader.read_fast()
                history.add(snapshot)
            reader.close()
        except NvmlUnavailable as error:
            snapshot = reader.failed(error)
    return assess(snapshot, history.of(snapshot.generation), clock=lambda: moment[0] + 1)


class Case(NamedTuple):
    fault: Fault
    code: str
    action: str
    verdict: str
    profile: str = "h100"
    driver: str | None = None


CASES = [
    Case(Lost(kind="lost", gpu=GPU), "gpu_lost", "REBOOT_NODE", "failed"),
    Case(Unreadable(kind="unreadable", gpu=GPU), "gpu_unreadable", "REBOOT_NODE", "failed"),
    Case(
        Refused(kind="refused", gpu=GPU, return_code=16, call="nvmlDeviceGetEccMode"),
        "reset_required", "RESET_GPU", "failed",
    ),
    Case(NoPermission(kind="no_permission", gpu=GPU), "gpu_no_permission", "CHECK_ACCESS",
         "unknown"),
    Case(RecoveryAction(kind="recovery_action", gpu=GPU, action=1), "recovery_action",
         "RESET_GPU", "failed"),
    Case(RecoveryAction(kind="recovery_action", gpu=GPU, action=4), "recovery_action",
         "DRAIN_AND_RESET", "degraded"),
    Case(Ecc(kind="ecc", gpu=GPU), "ecc_uncorrected_rising", "DRAIN_AND_RESET", "degraded"),
    Case(Ecc(kind="ecc", gpu=GPU, location="sram"), "ecc_uncorrected_rising", "RESET_GPU",
         "failed", driver="550.90.12"),
    Case(SramThreshold(kind="sram_threshold", gpu=GPU), "sram_threshold_exceeded",
         "RUN_FIELD_DIAG", "failed"),
    Case(RowRemap(kind="row_remap", gpu=GPU), "row_remap_pending", "RESET_GPU", "degraded"),
    Case(RowRemap(kind="row_remap", gpu=GPU, failure=True), "row_remap_failure",
         "RUN_FIELD_DIAG", "failed"),
    Case(RemapExhausted(kind="remap_exhausted", gpu=GPU), "row_remap_exhausted", "NONE",
         "degraded"),
    Case(RetiredPages(kind="retired_pages", gpu=GPU, pending=True), "retired_pages_pending",
         "RESET_GPU", "degraded", "t4"),
    Case(RetiredPages(kind="retired_pages", gpu=GPU, uncorrected=63), "retired_pages_limit",
         "RUN_FIELD_DIAG", "failed", "t4"),
    Case(RepairPending(kind="repair_pending", gpu=GPU), "repair_pending", "RESET_GPU",
         "degraded"),
    Case(UnrepairableMemory(kind="unrepairable_memory", gpu=GPU), "memory_unrepairable",
         "RUN_FIELD_DIAG", "failed", driver="595.91.07"),
    Case(Temperature(kind="temperature", gpu=GPU, margin=0), "gpu_hot", "CHECK_COOLING",
         "degraded"),
    Case(Temperature(kind="temperature", gpu=GPU, celsius=94), "gpu_hot", "CHECK_COOLING",
         "failed", "t4"),
    Case(MemoryTemperature(kind="memory_temperature", gpu=GPU, celsius=97), "memory_hot",
         "CHECK_COOLING", "degraded", "a100-40"),
    Case(Throttle(kind="throttle", gpu=GPU), "hw_thermal_slowdown", "CHECK_COOLING", "degraded"),
    Case(Throttle(kind="throttle", gpu=GPU, reasons=("sw_thermal_slowdown",), share=0.5),
         "sw_thermal_slowdown", "CHECK_COOLING", "degraded"),
    Case(PowerBrake(kind="power_brake", gpu=GPU), "hw_power_brake", "CHECK_POWER", "degraded"),
    Case(PcieLink(kind="pcie_link", gpu=GPU, width=8), "pcie_width_low", "CHECK_SEATING",
         "degraded"),
    Case(PcieLink(kind="pcie_link", gpu=GPU, generation=3), "pcie_generation_low",
         "CHECK_SEATING", "degraded"),
    Case(PcieReplays(kind="pcie_replays", gpu=GPU, per_second=2), "pcie_replays",
         "CHECK_SEATING", "degraded"),
    Case(PcieErrors(kind="pcie_errors", gpu=GPU, error="fatal"), "pcie_errors", "CHECK_SEATING",
         "failed"),
    Case(NvlinkDown(kind="nvlink_down", gpu=GPU, links=(4, 5)), "nvlink_down", "RESET_GPU",
         "failed"),
    Case(NvlinkErrors(kind="nvlink_errors", gpu=GPU, error="recovery"), "nvlink_errors",
         "INVESTIGATE_LINK_SI", "degraded"),
    Case(NvlinkErrors(kind="nvlink_errors", gpu=GPU, error="recoveries_failed", links=(3,)),
         "nvlink_recovery_failed", "INVESTIGATE_LINK_SI", "failed", "gb200"),
    Case(NvlinkErrors(kind="nvlink_errors", gpu=GPU, error="local_integrity"), "nvlink5_errors",
         "INVESTIGATE_LINK_SI", "degraded", "gb200"),
    Case(NvlinkBer(kind="nvlink_ber", gpu=GPU), "nvlink_bit_errors", "INVESTIGATE_LINK_SI",
         "degraded", "gb200"),
    Case(Fabric(kind="fabric", gpu=GPU, state="not_started"), "fabric_not_ready", "RESTART_FM",
         "failed"),
    Case(Fabric(kind="fabric", gpu=GPU, status=999), "fabric_failed", "RESTART_FM", "failed"),
    Case(Fabric(kind="fabric", gpu=GPU, health="limited_capacity"), "fabric_unhealthy",
         "RESTART_FM", "degraded", "gb200"),
    Case(MigPending(kind="mig_pending", gpu=GPU), "mig_mode_pending", "RESET_GPU", "degraded"),
    Case(EccPending(kind="ecc_pending", gpu=GPU), "ecc_mode_pending", "RESET_GPU", "degraded"),
    Case(PersistenceOff(kind="persistence_off", gpu=GPU), "persistence_off", "NONE", "healthy"),
    Case(WholeNode(kind="driver_not_loaded"), "nvml_absent", "RELOAD_DRIVER", "degraded"),
    Case(WholeNode(kind="driver_mismatch"), "driver_mismatch", "RELOAD_DRIVER", "failed"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code}-{case.profile}")
def test_a_fault_is_found_and_none_is_invented(case: Case) -> None:
    faults_once_opened = isinstance(case.fault, (Unreadable, NoPermission))
    assessment = course(case.profile, case.fault, driver=case.driver, reopen=faults_once_opened)
    assert [(f.code, f.action) for f in assessment.findings] == [(case.code, case.action)]
    assert assessment.verdict == case.verdict
    concerned = {f.gpu_index for f in assessment.findings} - {None}
    assert concerned <= {GPU}


def test_a_gpu_that_is_not_counted_any_more_is_told_once() -> None:
    assessment = course("h100", Vanished(kind="vanished", gpu=3), reopen=True)
    (finding,) = assessment.findings
    assert (finding.code, finding.gpu_index) == ("gpu_lost", 3)
    assert [gpu.verdict for gpu in assessment.gpus] == ["healthy"] * 3 + ["failed"]


def test_everything_refused_as_not_supported_is_unknown() -> None:
    refused = Refused(kind="refused", gpu=GPU, return_code=3, call="*")
    assessment = course("h100", refused, reopen=True)
    assert assessment.findings == ()
    assert assessment.gpus[GPU].verdict == assessment.verdict == "unknown"


@pytest.mark.parametrize(
    "fault",
    [
        Throttle(kind="throttle", gpu=GPU, reasons=("sw_power_cap", "sync_boost")),
        PcieErrors(kind="pcie_errors", gpu=GPU, error="recoveries"),
        PcieErrors(kind="pcie_errors", gpu=GPU, error="correctable"),
        PcieReplays(kind="pcie_replays", gpu=GPU, count=10, per_second=0.1),
        NvlinkErrors(kind="nvlink_errors", gpu=GPU, error="recoveries_successful"),
        NvlinkDown(kind="nvlink_down", gpu=GPU, state="sleep"),
        Ecc(kind="ecc", gpu=GPU, uncorrected=0, corrected=100, uncorrected_lifetime=4),
        RecoveryAction(kind="recovery_action", gpu=GPU, action=0),
    ],
    ids=lambda fault: str(fault.kind),
)
@pytest.mark.parametrize("profile", ["h100", "gb200"])
def test_what_is_no_fault_is_none(profile: str, fault: Fault) -> None:
    assert course(profile, fault).verdict == "healthy"
