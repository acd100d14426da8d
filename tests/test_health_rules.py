"""Every finding there can be, made by what it is for: code, severity, action, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcp_gpu.gpu import simulator
from mcp_gpu.gpu.actions import ACTIONS
from mcp_gpu.gpu.health.assess import assess
from mcp_gpu.gpu.health.codes import CODES
from mcp_gpu.gpu.health.model import Assessment, Finding, Severity
from mcp_gpu.gpu.history import Past
from mcp_gpu.gpu.model import READINGS, Failure, Gpu, Snapshot, Waiting
from mcp_gpu.gpu.simulator.faults import (
    Fault,
    Lost,
    NoPermission,
    RecoveryAction,
    Refused,
    RowRemap,
    Unreadable,
    WholeNode,
)  # fmt: skip
from mcp_gpu.gpu.vitals import VITALS_READINGS, Vitals
from support.readings import (
    T0,
    board,
    burst,
    changed,
    later,
    seen,
    watched,
    wired,
    without,
)  # fmt: skip


class Case(NamedTuple):
    """What is wrong, and the only finding above persistence that it makes."""

    code: str
    severity: Severity
    action: str
    make: Callable[[], Assessment]


def faulty(*faults: Fault, profile: str = "h100") -> Callable[[], Assessment]:
    """One reading of a node with faults."""
    return lambda: seen(board(profile, faults=faults))


def now(profile: str = "h100", gpu: int | None = 0, **values: object) -> Callable[[], Assessment]:
    """One reading of a healthy node, changed."""
    return lambda: seen(changed(board(profile), gpu, **values))


def grown(
    profile: str = "h100",
    link: int | None = None,
    driver: str | None = None,
    **values: object,
) -> Callable[[], Assessment]:
    """Two readings half a minute apart, changed by the second."""
    before = dict.fromkeys(values, 0) if link is not None else {}

    def make() -> Assessment:
        first = wired(board(profile, driver=driver), **before)
        return watched(first, changed(first, link=link, **values))

    return make


def failing(code: int, name: str) -> Callable[[], Assessment]:
    failure = Failure(code=code, name=name, message="It does not start.")
    return lambda: seen(Snapshot(state="failing", failure=failure))


def without_driver(
    *, gpu_count_expected: int | None = None, expected_gpus: int | None = None
) -> Callable[[], Assessment]:
    """A node on which GPUs were seen before, or are configured to be."""
    failure = Failure(code=9, name="DriverNotLoaded", message="It is not loaded.")
    snapshot = Snapshot(state="absent", failure=failure, gpu_count_expected=gpu_count_expected)
    return lambda: seen(snapshot, expected_gpus=expected_gpus)


def hanging(seconds: float, xid: int | None = None) -> Callable[[], Assessment]:
    def make() -> Assessment:
        waiting = Waiting(seconds=seconds, call="nvmlDeviceGetPowerUsage", gpu_index=2)
        snapshot = board("h100").model_copy(update={"waiting": waiting})
        bursts = () if xid is None else (burst(xid, snapshot, 2),)
        return seen(snapshot, bursts=bursts)

    return make


def old(driver: str = "550.90.12") -> Snapshot:
    """A node whose driver does not tell a recovery action."""
    return board("h100", driver=driver)


def xid(code: int, *beside: int, ago: float = 0.5) -> Callable[[], Assessment]:
    """On a driver that says nothing of it, later than what was read."""
    return lambda: seen(
        old(),
        bursts=tuple(burst(one, old(), 1, at=T0 + 1.0 - ago) for one in (code, *beside)),
    )


def remapped(**left: object) -> Callable[[], Assessment]:
    """What a 48 with its 63 has left behind some hours later."""
    snapshot = changed(old(), 1, **left)
    bursts = tuple(burst(code, snapshot, 1, at=T0 - 7200) for code in (48, 63))
    return lambda: seen(snapshot, bursts=bursts)


def switch() -> Assessment:
    """A fatal error of an NVSwitch."""
    said = burst(20034, old(), at=T0, kind="sxid", bus_id="0000:c1:00")
    event = replace(said.first, text="Fatal, Link 30 LTSSM Fault Up")
    return seen(old(), bursts=(replace(said, first=event, samples=(event,)),))


def slow_generation() -> Assessment:
    loaded = changed(board("h100", load=0.9), None, utilization_gpu_percent=95)
    slow = changed(loaded, pcie_generation_current=3)
    return watched(slow, slow)


def no_links() -> Assessment:
    """A pair without one link that is up; the other of it may not have any."""
    pair = changed(wired(board("h100", gpus=2), state="inactive"), None, nvlink_active=0)
    return seen(changed(pair, 1, nvswitch_link_count=0))


def hanging_from_the_start(seconds: float) -> Callable[[], Assessment]:
    """Nothing has been read; the GPU that the call is about is not known yet."""
    waiting = Waiting(seconds=seconds, call="nvmlDeviceGetHandleByIndex_v2", gpu_index=0)
    return lambda: seen(Snapshot(waiting=waiting))


def stale() -> Assessment:
    return assess(board("h100"), Past(), clock=lambda: T0 + 1000)


UNKNOWN_ACTION = {"recovery_action": "unknown(9)"}

CASES = [
    Case("recovery_action", "critical", "RESET_GPU",
         faulty(RecoveryAction(kind="recovery_action", gpu=1, action=1))),
    Case("recovery_action", "critical", "REBOOT_NODE",
         faulty(RecoveryAction(kind="recovery_action", gpu=1, action=2))),
    Case("recovery_action", "critical", "DRAIN_P2P",
         faulty(RecoveryAction(kind="recovery_action", gpu=1, action=3))),
    Case("recovery_action", "warning", "DRAIN_AND_RESET",
         faulty(RecoveryAction(kind="recovery_action", gpu=1, action=4))),
    Case("recovery_action", "critical", "RECOVER_IMEX",
         faulty(RecoveryAction(kind="recovery_action", gpu=1, action=5))),
    Case("recovery_action", "critical", "BUS_RESET",
         faulty(RecoveryAction(kind="recovery_action", gpu=1, action=6))),
    Case("recovery_action", "critical", "SYSTEM_REBOOT",
         faulty(RecoveryAction(kind="recovery_action", gpu=1, action=7))),
    Case("recovery_action", "warning", "UNKNOWN", now(**UNKNOWN_ACTION)),
    Case("gpu_lost", "critical", "REBOOT_NODE", faulty(Lost(kind="lost", gpu=1))),
    Case("reset_required", "critical", "RESET_GPU",
         faulty(Refused(kind="refused", gpu=1, return_code=16, call="nvmlDeviceGetPower*"))),
    Case("gpu_unreadable", "critical", "REBOOT_NODE",
         faulty(Unreadable(kind="unreadable", gpu=1))),
    Case("gpu_unreadable", "critical", "RESET_GPU",
         faulty(Unreadable(kind="unreadable", gpu=1, return_code=10))),
    Case("gpu_unreadable", "critical", "CHECK_SEATING",
         faulty(Unreadable(kind="unreadable", gpu=1, return_code=8))),
    Case("gpu_unreadable", "critical", "RUN_FIELD_DIAG",
         faulty(Unreadable(kind="unreadable", gpu=1, return_code=14))),
    Case("gpu_no_permission", "info", "CHECK_ACCESS",
         faulty(NoPermission(kind="no_permission", gpu=1))),
    Case("nvml_absent", "info", "NONE", faulty(WholeNode(kind="driver_not_loaded"))),
    Case("nvml_absent", "info", "NONE", faulty(WholeNode(kind="library_missing"))),
    Case("nvml_absent", "warning", "RELOAD_DRIVER", without_driver(gpu_count_expected=4)),
    Case("nvml_absent", "critical", "RELOAD_DRIVER", without_driver(expected_gpus=4)),
    Case("driver_mismatch", "critical", "RELOAD_DRIVER",
         faulty(WholeNode(kind="driver_mismatch"))),
    Case("nvml_no_permission", "info", "CHECK_ACCESS", faulty(NoPermission(kind="no_permission"))),
    Case("nvml_failing", "warning", "CHECK_ACCESS", faulty(WholeNode(kind="device_cgroup"))),
    Case("nvml_failing", "critical", "CHECK_SEATING", failing(8, "InsufficientPower")),
    Case("nvml_failing", "critical", "RUN_FIELD_DIAG", failing(14, "CorruptedInforom")),
    Case("nvml_failing", "critical", "REBOOT_NODE", failing(12345, "Code12345")),
    Case("nvml_not_answering", "info", "NONE", hanging(3)),
    Case("nvml_not_answering", "info", "NONE", hanging(4.9)),
    Case("nvml_not_answering", "warning", "NONE", hanging(5)),
    Case("nvml_not_answering", "critical", "REBOOT_NODE", hanging(60)),
    Case("nvml_not_answering", "warning", "NONE", hanging_from_the_start(12)),
    Case("gsp_timeout", "critical", "RESET_GPU", hanging(12, 119)),
    Case("gsp_timeout", "critical", "RESET_GPU", hanging(3, 120)),
    Case("readings_stale", "warning", "NONE", stale),
    Case("gpu_count_low", "critical", "REBOOT_NODE",
         lambda: seen(board("h100", gpus=7), expected_gpus=8)),
    Case("ecc_uncorrected_rising", "critical", "RESET_GPU",
         grown(ecc_uncorrected_volatile=2, driver="550.90.12")),
    Case("ecc_uncorrected_rising", "critical", "RESET_GPU",
         grown(ecc_sram_uncorrected=1, driver="550.90.12")),
    Case("ecc_uncorrected_rising", "warning", "DRAIN_AND_RESET", grown(ecc_dram_uncorrected=2)),
    Case("ecc_uncorrected", "warning", "RESET_GPU", now(ecc_uncorrected_volatile=2)),
    Case("ecc_uncorrected", "warning", "RESET_GPU", now(ecc_dram_uncorrected=1)),
    Case("ecc_uncorrected", "warning", "DRAIN_AND_RESET", remapped(ecc_uncorrected_volatile=1)),
    Case("row_remap_pending", "warning", "DRAIN_AND_RESET", remapped(row_remap_pending=True)),
    Case("sram_threshold_exceeded", "critical", "RUN_FIELD_DIAG",
         now(sram_threshold_exceeded=True)),
    Case("row_remap_failure", "critical", "RUN_FIELD_DIAG",
         faulty(RowRemap(kind="row_remap", gpu=1, failure=True))),
    Case("row_remap_pending", "warning", "RESET_GPU", faulty(RowRemap(kind="row_remap", gpu=1))),
    Case("row_remap_exhausted", "warning", "NONE", now(remap_banks_none=2)),
    Case("memory_unrepairable", "critical", "RUN_FIELD_DIAG", now(unrepairable_memory=True)),
    Case("repair_pending", "warning", "RESET_GPU", now(channel_repair_pending=True)),
    Case("repair_pending", "warning", "RESET_GPU",
         now(channel_repair_pending=False, tpc_repair_pending=True)),
    Case("retired_pages_limit", "critical", "RUN_FIELD_DIAG",
         now("t4", retired_pages_uncorrected=3, retired_pages_corrected=60)),
    Case("retired_pages_limit", "warning", "NONE",
         now("t4", retired_pages_uncorrected=16, retired_pages_corrected=0)),
    Case("retired_pages_pending", "warning", "RESET_GPU",
         now("t4", retired_pages_pending=True, retired_pages_uncorrected=1)),
    Case("gpu_hot", "warning", "CHECK_COOLING", now(temperature_margin_celsius=0)),
    Case("gpu_hot", "critical", "CHECK_COOLING", now(temperature_margin_celsius=-2)),
    Case("gpu_hot", "warning", "CHECK_COOLING", now("a100-40", temperature_celsius=85)),
    Case("gpu_hot", "critical", "CHECK_COOLING", now("t4", temperature_celsius=93)),
    Case("memory_hot", "warning", "CHECK_COOLING", now("a100-40", memory_temperature_celsius=95)),
    Case("hw_thermal_slowdown", "warning", "CHECK_COOLING",
         grown(slowed_by_hw_thermal_seconds=3.0)),
    Case("hw_thermal_slowdown", "info", "NONE", grown(slowed_by_hw_thermal_seconds=0.2)),
    Case("sw_thermal_slowdown", "warning", "CHECK_COOLING",
         grown(slowed_by_sw_thermal_seconds=20.0)),
    Case("sw_thermal_slowdown", "info", "NONE", grown(slowed_by_sw_thermal_seconds=1.0)),
    Case("hw_power_brake", "warning", "CHECK_POWER", grown(slowed_by_hw_power_brake_seconds=15.0)),
    Case("hw_power_brake", "info", "NONE", grown(slowed_by_hw_power_brake_seconds=0.1)),
    Case("slowed_now", "info", "NONE",
         now("a100-40", throttle_reasons=("hw_slowdown", "hw_power_brake"))),
    Case("pcie_width_low", "warning", "CHECK_SEATING", now(pcie_width_current=8)),
    Case("pcie_generation_low", "warning", "CHECK_SEATING", slow_generation),
    Case("pcie_replays", "warning", "CHECK_SEATING", grown(pcie_replays=150 + 40)),
    Case("pcie_errors", "critical", "CHECK_SEATING", grown(pcie_fatal_errors=1)),
    Case("pcie_errors", "warning", "CHECK_SEATING", grown(pcie_nonfatal_errors=1)),
    Case("nvlink_down", "critical", "RESET_GPU", now(link=3, state="inactive")),
    Case("nvlink_down", "warning", "RESET_GPU", no_links),
    Case("nvlink_errors", "warning", "INVESTIGATE_LINK_SI", grown(link=3, recovery_errors=1)),
    Case("nvlink_errors", "warning", "INVESTIGATE_LINK_SI", grown(link=3, replay_errors=9)),
    Case("nvlink_errors", "critical", "INVESTIGATE_LINK_SI", grown(link=3, crc_errors=3001)),
    Case("nvlink_recovery_failed", "critical", "INVESTIGATE_LINK_SI",
         grown("b200", link=3, recoveries_failed=1)),
    Case("nvlink_bit_errors", "warning", "INVESTIGATE_LINK_SI",
         now("b200", link=3, effective_ber=2e-12)),
    Case("nvlink_bit_errors", "info", "NONE", now("b200", link=3, symbol_ber=2e-12)),
    Case("nvlink5_errors", "warning", "INVESTIGATE_LINK_SI",
         grown("b200", link=3, local_integrity_errors=5)),
    Case("fabric_not_ready", "critical", "RESTART_FM", now(fabric_state="not_started")),
    Case("fabric_not_ready", "warning", "NONE", now(fabric_state="in_progress")),
    Case("fabric_not_ready", "warning", "RESTART_FM",
         lambda: watched(*[changed(board("h100"), fabric_state="in_progress")] * 11)),
    Case("fabric_failed", "critical", "RESTART_FM", now(fabric_status="error(999)")),
    Case("fabric_unhealthy", "critical", "RESTART_FM", now("b200", fabric_health="unhealthy")),
    Case("fabric_unhealthy", "warning", "RESTART_FM",
         now("b200", fabric_health="limited_capacity")),
    Case("mig_mode_pending", "warning", "RESET_GPU", now(mig_mode_pending=True)),
    Case("ecc_mode_pending", "warning", "RESET_GPU", now(ecc_mode_pending=False)),
    Case("persistence_off", "info", "NONE", now(persistence_mode=False)),
    Case("xid", "critical", "RESET_GPU", xid(109)),
    Case("xid", "critical", "DRAIN_AND_RESET", xid(48, 63)),
    Case("xid", "critical", "RESTART_VM", xid(151)),
    Case("xid", "critical", "CHECK_SEATING", xid(54)),
    Case("xid", "critical", "UPDATE_SW_FW", xid(78)),
    Case("xid", "critical", "CONTACT_SUPPORT", xid(142)),
    Case("xid", "critical", "REBOOT_NODE",
         lambda: seen(old(), bursts=(burst(79, old(), bus_id="0000:ff:00"),))),
    Case("xid", "warning", "RESET_GPU", xid(109, ago=3600.0)),
    Case("xid", "critical", "NONE", xid(173)),
    Case("sxid", "warning", "NONE", switch),
    Case("xid_past", "info", "NONE",
         lambda: seen(board("h100"), bursts=(burst(109, board("h100"), at=T0 - 60),))),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code}-{case.action}")
def test_what_is_wrong_is_found_and_nothing_else(case: Case) -> None:
    assessment = case.make()
    findings = [f for f in assessment.findings if f.code != "persistence_off"] or list(
        assessment.findings
    )
    assert [(f.code, f.severity, f.action) for f in findings] == [case[:3]]
    (finding,) = findings
    assert_is_complete(finding)
    worst = {"critical": "failed", "warning": "degraded"}
    if finding.severity in worst:
        assert assessment.verdict == worst[finding.severity]
    else:
        assert assessment.verdict in {"healthy", "unknown"}
    for gpu in assessment.gpus:
        assert (case.code in gpu.findings) == (finding.gpu_index == gpu.gpu_index)


def assert_is_complete(finding: Finding) -> None:
    """A finding is of its kind as codes.py has it, and can be acted on."""
    code = CODES[finding.code]
    assert finding.severity in code.severities
    assert finding.action in code.actions
    assert finding.source == code.source
    assert finding.title.endswith(".")
    assert finding.evidence
    assert finding.advice
    assert "None" not in finding.title + finding.advice


def test_every_kind_of_finding_is_made_by_a_test() -> None:
    assert {case.code for case in CASES} == set(CODES)
    severities = {(case.code, case.severity) for case in CASES}
    assert severities == {(c.name, severity) for c in CODES.values() for severity in c.severities}
    actions = {(case.code, case.action) for case in CASES}
    assert actions == {(c.name, action) for c in CODES.values() for action in c.actions}
    # Restarting a program is nothing that a GPU asks for.
    assert {case.action for case in CASES} == set(ACTIONS) - {"RESTART_APP"}


# --- evidence -------------------------------------------------------------------------------


def test_evidence_has_value_unit_age_and_what_it_is_compared_with() -> None:
    (finding,) = now("t4", temperature_celsius=93)().findings
    first, most, *_ = finding.evidence
    assert (first.reading, first.value, first.unit) == ("temperature_celsius", 93, "°C")
    assert first.age_seconds == 1.0
    assert (most.reading, most.value) == ("temperature_gpu_max_celsius", 85)


def test_a_rate_says_how_much_in_how_long() -> None:
    assessment = grown(pcie_replays=190)()
    (finding,) = assessment.findings
    assert finding.evidence[0].value == 40
    assert finding.evidence[0].unit == "more in 30 s"
    assert finding.evidence[0].note == "80 a minute; up to 31 are normal"
    assert assessment.rates_over_seconds == 30.0


def test_advice_for_a_reset_says_who_must_let_go_of_the_gpu() -> None:
    (finding,) = faulty(RecoveryAction(kind="recovery_action", gpu=1, action=1))().findings
    assert "Drain the pods that use GPU 1" in finding.advice
    assert "the mcp-gpu agent" in finding.advice
    assert "nvidia-smi --gpu-reset --id=1" in finding.advice


def test_what_was_read_by_many_links_is_told_briefly() -> None:
    before = wired(board("h100"), recovery_errors=0)
    after = before
    for link in range(18):
        after = changed(after, link=link, recovery_errors=1 + link)
    (finding,) = watched(before, after).findings
    assert finding.title.startswith("18 NVLink(s)")
    assert len(finding.evidence) == 4
    assert finding.evidence[0].reading == "links[17].recovery_errors"
    assert finding.evidence[-1].note == "and 14 more counters like these"


# --- one cause, one finding -----------------------------------------------------------------


def codes(assessment: Assessment) -> list[str]:
    return [finding.code for finding in assessment.findings]


def test_the_drivers_verdict_tells_what_led_to_it() -> None:
    snapshot = changed(
        board("h100"), recovery_action="gpu_reset", row_remap_pending=True,
        ecc_uncorrected_volatile=1,
    )  # fmt: skip
    (finding,) = seen(snapshot, bursts=(burst(95, snapshot),)).findings
    assert (finding.code, finding.action) == ("recovery_action", "RESET_GPU")
    assert set(finding.includes) == {"ecc_uncorrected", "row_remap_pending", "xid"}
    readings = [evidence.reading for evidence in finding.evidence]
    assert readings[0] == "recovery_action"
    assert {"row_remap_pending", "ecc_uncorrected_volatile", "xid"} <= set(readings)


def test_a_lost_gpu_with_its_xid_and_the_drivers_verdict_is_one_story() -> None:
    snapshot = board("h100", faults=(Lost(kind="lost", gpu=1),))
    known = board("h100").gpus[1]
    snapshot = changed(
        snapshot, 1, recovery_action="node_reboot", pci_bus_id=known.pci_bus_id, uuid=known.uuid
    )
    assessment = seen(snapshot, bursts=(burst(79, snapshot, 1),))
    (finding,) = assessment.findings
    assert (finding.code, finding.action) == ("recovery_action", "REBOOT_NODE")
    assert set(finding.includes) == {"gpu_lost", "xid"}
    assert assessment.gpus[1].verdict == "failed"
    assert list(assessment.gpus[1].not_checked) == ["readings"]


def test_a_replacement_is_a_story_of_its_own_beside_a_reset() -> None:
    snapshot = changed(
        board("h100"), recovery_action="gpu_reset", row_remap_failure=True, row_remap_pending=True
    )
    assert codes(seen(snapshot)) == ["recovery_action", "row_remap_failure"]
    links = changed(changed(board("b200"), recovery_action="gpu_reset"), link=0, effective_ber=1e-9)
    assert codes(seen(links))[:2] == ["recovery_action", "nvlink_bit_errors"]


def test_heat_explains_what_slows_the_gpu_down() -> None:
    hot = changed(
        board("h100"), temperature_margin_celsius=-2, slowed_by_hw_thermal_seconds=9.0,
        slowed_by_sw_thermal_seconds=20.0, throttle_reasons=("hw_slowdown", "hw_thermal_slowdown"),
    )  # fmt: skip
    (finding,) = watched(board("h100"), hot).findings
    assert (finding.code, finding.severity) == ("gpu_hot", "critical")
    assert set(finding.includes) == {"hw_thermal_slowdown", "sw_thermal_slowdown"}


def test_links_that_are_down_explain_their_errors_and_the_fabric() -> None:
    before = wired(board("b200"), recoveries_failed=0)
    down = changed(before, link=3, state="inactive", recoveries_failed=1)
    down = changed(down, fabric_health="unhealthy")
    (finding,) = (
        f for f in watched(before, down, bursts=(burst(149, down, at=T0 + 30),)).findings
        if f.severity == "critical"
    )  # fmt: skip
    assert finding.code == "nvlink_down"
    assert set(finding.includes) == {"nvlink_recovery_failed", "fabric_unhealthy", "xid"}


def test_links_without_a_fabric_manager_are_the_fabrics_story() -> None:
    snapshot = board("h100", gpus=1)
    for link in range(18):
        snapshot = changed(snapshot, link=link, state="inactive")
    snapshot = changed(snapshot, fabric_state="not_started", nvlink_active=0)
    assert codes(seen(snapshot)) == ["fabric_not_ready"]


def test_an_xid_79_explains_a_gpu_that_is_not_counted() -> None:
    snapshot = board("h100", gpus=3)
    xid_79 = burst(79, snapshot, bus_id="0000:d1:00", at=T0 - 3600)
    (finding,) = seen(snapshot, expected_gpus=4, bursts=(xid_79,)).findings
    assert (finding.code, finding.includes) == ("gpu_count_low", ("xid",))


def test_a_gpu_that_is_told_as_lost_is_not_missing_once_more() -> None:
    vanished = board("h100", faults=(Lost(kind="lost", gpu=3),)).model_copy(
        update={"gpu_count": 3, "gpu_count_expected": 4}
    )
    assert codes(seen(vanished)) == ["gpu_lost"]


def test_findings_come_worst_first_and_the_drivers_word_before_all() -> None:
    snapshot = changed(board("h100"), 0, ecc_uncorrected_volatile=1, persistence_mode=False)
    snapshot = changed(snapshot, 1, sram_threshold_exceeded=True)
    snapshot = changed(snapshot, 3, recovery_action="gpu_reset")
    assert codes(seen(snapshot)) == [
        "recovery_action", "sram_threshold_exceeded", "ecc_uncorrected", "persistence_off",
    ]  # fmt: skip


# --- rates ----------------------------------------------------------------------------------

RATES = {"slowdown", "pcie_replays", "pcie_errors", "nvlink_errors"}


def test_without_history_rates_are_not_checked_and_say_so() -> None:
    assessment = seen(board("h100"))
    late = {k for k, v in assessment.gpus[0].not_checked.items() if v == "not enough history yet"}
    assert late == RATES
    assert assessment.rates_over_seconds is None
    assert RATES & watched(board("h100"), board("h100")).gpus[0].not_checked.keys() == set()


def test_readings_too_close_together_make_no_rate() -> None:
    first, second = board("h100"), changed(later(board("h100"), 20), pcie_replays=10_000)
    assessment = assess(second, Past(first, (first, second)), clock=lambda: T0 + 20)
    assert assessment.findings == ()
    assert assessment.gpus[0].not_checked["pcie_replays"] == "not enough history yet"


def test_readings_of_another_generation_make_no_rate() -> None:
    first = board("h100").model_copy(update={"generation": 7})
    second = changed(later(board("h100"), 60), pcie_replays=10_000)
    assessment = assess(second, Past(first, (first,)), clock=lambda: T0 + 60)
    assert assessment.findings == ()
    assert assessment.rates_over_seconds is None


def test_a_counter_that_was_set_back_has_no_rate_until_there_is_new_history() -> None:
    high, back = changed(board("h100"), pcie_replays=9_000), changed(board("h100"), pcie_replays=0)
    assessment = watched(high, high, back)
    assert assessment.findings == ()
    assert assessment.gpus[0].not_checked["pcie_replays"] == "not enough history yet"
    assert codes(watched(high, high, back, changed(board("h100"), pcie_replays=40))) == [
        "pcie_replays"
    ]


def test_errors_from_before_the_window_are_old_and_say_how_old() -> None:
    bad = changed(board("h100"), ecc_uncorrected_volatile=3)
    (finding,) = watched(board("h100"), *[bad] * 25).findings
    assert finding.code == "ecc_uncorrected"
    assert finding.evidence[0].note == "3 of them in the 750 s that this agent has watched"


# --- what cannot be seen is not healthy --------------------------------------------------------


@pytest.mark.parametrize("reason", ["error(999)", "timeout", "not_supported", "no_permission"])
def test_every_field_unreadable_at_once_is_unknown(reason: str) -> None:
    snapshot = without(board("h100", gpus=2), reason, *READINGS, *VITALS_READINGS)
    assessment = seen(changed(snapshot, links=()))
    assert assessment.findings == ()
    assert [gpu.verdict for gpu in assessment.gpus] == ["unknown", "healthy"]
    assert assessment.verdict == "unknown"


@pytest.mark.parametrize("reason", ["error(999)", "timeout", "gpu_lost"])
@pytest.mark.parametrize("name", ["recovery_action", "row_remap_failure", "fabric_state"])
def test_a_refusal_that_may_pass_leaves_a_gpu_unknown(name: str, reason: str) -> None:
    assessment = seen(without(board("h100"), reason, name))
    assert assessment.findings == ()
    assert assessment.gpus[0].verdict == "unknown"
    assert reason in assessment.gpus[0].not_checked.values()
    assert assessment.gpus[1].verdict == "healthy"


@pytest.mark.parametrize(
    "reason", ["not_supported", "driver_too_old", "deprecated", "mig_active", "error(2)"]
)
def test_a_refusal_for_good_does_not(reason: str) -> None:
    snapshot = without(board("h100"), reason, "recovery_action", "row_remap_failure")
    assessment = seen(snapshot)
    assert assessment.gpus[0].verdict == "healthy"
    assert assessment.gpus[0].not_checked["recovery_action"] == reason


def test_worse_is_told_before_unknown_and_unknown_before_healthy() -> None:
    snapshot = without(board("h100"), "timeout", "recovery_action")
    assert seen(snapshot).verdict == "unknown"
    degraded = changed(snapshot, 1, row_remap_pending=True)
    assert seen(degraded).verdict == "degraded"
    assert seen(changed(degraded, 2, sram_threshold_exceeded=True)).verdict == "failed"


@pytest.mark.parametrize(
    "snapshot",
    [Snapshot(), Snapshot(state="ok", gpu_count=0, fast_at=T0, slow_at=T0)],
    ids=["starting", "no GPU"],
)
def test_a_node_without_a_gpu_to_look_at_is_unknown(snapshot: Snapshot) -> None:
    assessment = seen(snapshot)
    assert (assessment.verdict, assessment.gpus) == ("unknown", ())
    assert list(assessment.not_checked) == ["gpus"]


def test_gpus_are_unknown_while_nvml_cannot_be_used() -> None:
    known = tuple(
        Gpu(index=index, state="unreadable", error="gone", uuid=f"GPU-{index}") for index in (0, 1)
    )
    failure = Failure(code=18, name="LibRmVersionMismatch", message="upgraded")
    assessment = seen(Snapshot(state="failing", failure=failure, gpus=known))
    assert [gpu.verdict for gpu in assessment.gpus] == ["unknown", "unknown"]
    assert assessment.verdict == "failed"
    assert codes(assessment) == ["driver_mismatch"]


def test_a_gpu_of_another_container_is_unknown_and_the_rest_is_judged() -> None:
    assessment = faulty(NoPermission(kind="no_permission", gpu=1))()
    assert [gpu.verdict for gpu in assessment.gpus] == ["healthy", "unknown", "healthy", "healthy"]
    assert assessment.verdict == "unknown"


def test_verdicts_from_old_readings_are_not_healthy() -> None:
    assessment = stale()
    assert {gpu.verdict for gpu in assessment.gpus} == {"unknown"}
    assert "readings" in assessment.not_checked


def test_a_long_period_of_readings_is_no_staleness() -> None:
    first, second = board("h100"), later(board("h100"), 120)
    assessment = assess(second, Past(first, (first, second)), clock=lambda: T0 + 320)
    assert assessment.verdict == "healthy"


def test_a_pause_of_the_past_does_not_make_old_readings_young() -> None:
    readings = [later(board("h100"), seconds) for seconds in (0, 30, 3600)]
    past = Past(readings[0], tuple(readings))
    assert assess(readings[-1], past, clock=lambda: T0 + 4000).verdict == "degraded"


# --- Xids -----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [13, 31, 43, 45, 63, 94, 154, 61, 999])
def test_what_programs_do_and_what_the_catalogue_does_not_know_is_no_sick_gpu(code: int) -> None:
    snapshot = old()
    assert seen(snapshot, bursts=(burst(code, snapshot),)).verdict == "healthy"


def test_an_nvswitchs_error_is_no_gpus() -> None:
    snapshot = old()
    sxid = burst(79, snapshot, kind="sxid")
    assert seen(snapshot, bursts=(sxid,)).findings == ()


@pytest.mark.parametrize("code", [79, 95, 48, 64])
def test_what_is_read_later_contradicts_an_xid(code: int) -> None:
    snapshot = old()
    (finding,) = seen(snapshot, bursts=(burst(code, snapshot, at=T0 - 30),)).findings
    assert (finding.code, finding.severity) == ("xid_past", "info")


def test_what_was_read_before_an_xid_does_not() -> None:
    snapshot = board("h100")
    (finding,) = seen(snapshot, bursts=(burst(109, snapshot, at=T0 + 0.5),)).findings
    assert (finding.code, finding.severity) == ("xid", "critical")


def test_a_links_xid_is_never_more_than_a_warning_without_its_line() -> None:
    snapshot = old()
    (finding,) = seen(snapshot, bursts=(burst(74, snapshot, at=T0 + 0.5),)).findings
    assert (finding.severity, finding.confidence) == ("warning", "medium")


def test_many_bursts_of_one_code_are_one_line_of_evidence() -> None:
    snapshot = old()
    bursts = tuple(burst(109, snapshot, at=T0 - 100 + n, count=50) for n in range(20))
    (finding,) = seen(snapshot, bursts=bursts).findings
    (evidence,) = finding.evidence
    assert (evidence.value, evidence.age_seconds) == (109, 82.0)
    assert "1000 times" in evidence.note


# --- odd data -------------------------------------------------------------------------------

TIMES = st.one_of(st.none(), st.floats(min_value=-1e12, max_value=1e12))
COUNTS = st.one_of(st.none(), st.integers(min_value=-(2**63), max_value=2**64))


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    gpus = tuple(
        Gpu(
            index=index,
            state=draw(st.sampled_from(["ok", "lost", "unreadable"])),
            name=draw(st.sampled_from([None, "one", "two"])),
            pci_bus_id=draw(st.sampled_from([None, "", "00000000:53:00.0", "zz:zz"])),
            pcie_width_current=draw(COUNTS),
            pcie_generation_current=draw(COUNTS),
            utilization_gpu_percent=draw(COUNTS),
            nvlink_active=draw(COUNTS),
            recovery_action=draw(st.sampled_from([None, "none", "gpu_reset", "odd"])),
            ecc_uncorrected_volatile=draw(COUNTS),
            fabric_state=draw(st.sampled_from([None, "completed", "odd"])),
        )
        for index in range(draw(st.integers(min_value=0, max_value=3)))
    )
    vitals = tuple(
        Vitals(
            index=index,
            pcie_replays=draw(COUNTS),
            temperature_margin_celsius=draw(COUNTS),
            slowed_by_hw_thermal_seconds=draw(st.floats()),
        )
        for index in range(draw(st.integers(min_value=0, max_value=4)))
    )
    return Snapshot(
        state=draw(st.sampled_from(["starting", "ok", "absent", "failing"])),
        gpus=gpus, vitals=vitals, gpu_count=draw(COUNTS), gpu_count_expected=draw(COUNTS),
        slow_at=draw(TIMES), fast_at=draw(TIMES), generation=draw(st.sampled_from([1, 2])),
    )  # fmt: skip


@given(snapshots(), st.lists(snapshots(), max_size=4), TIMES, COUNTS)
@settings(max_examples=200, deadline=None)
def test_odd_data_is_judged_too(
    snapshot: Snapshot, past: list[Snapshot], at: float | None, expected: int | None
) -> None:
    history = Past(past[0] if past else None, tuple(past))
    bursts = (burst(79, board_once()), burst(-1, board_once(), bus_id="nonsense"))
    assessment = assess(
        snapshot, history, bursts=bursts, expected_gpus=expected, clock=lambda: at or 0.0
    )
    for finding in assessment.findings:
        assert finding.code in CODES
    assert Assessment.model_validate_json(assessment.model_dump_json()).verdict


_ONCE: list[Snapshot] = []


def board_once() -> Snapshot:
    if not _ONCE:
        _ONCE.append(simulator.snapshot(simulator.Node("once", "h100", gpus=1)))
    return _ONCE[0]
