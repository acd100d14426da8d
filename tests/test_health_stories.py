"""One cause, one finding: what the driver says against what its counters and Xids show."""

from __future__ import annotations

import pytest

from mcp_gpu.gpu.health.model import Assessment, Finding
from mcp_gpu.gpu.simulator.faults import Refused
from support.readings import T0, board, burst, changed, seen, watched


def contained(recovery_action: str) -> Assessment:
    """An error that cost one program: its row waits to be replaced."""
    before = board("h100")
    after = changed(
        before, ecc_uncorrected_volatile=1, ecc_dram_uncorrected=1, row_remap_pending=True,
        recovery_action=recovery_action,
    )  # fmt: skip
    xids = tuple(burst(code, before, at=T0 + 20) for code in (94, 63))
    return watched(before, after, bursts=xids)


def only(assessment: Assessment) -> Finding:
    (finding,) = assessment.findings
    return finding


def test_a_contained_error_takes_nothing_from_who_works_on() -> None:
    finding = only(contained("none"))
    assert (finding.code, finding.includes) == ("ecc_uncorrected_rising", ("row_remap_pending",))
    assert (finding.severity, finding.confidence) == ("warning", "medium")
    assert finding.action == "DRAIN_AND_RESET"


def test_that_jobs_may_end_is_not_made_worse_by_what_it_is_about() -> None:
    assessment = contained("drain_and_reset")
    finding = only(assessment)
    assert (finding.code, finding.severity) == ("recovery_action", "warning")
    assert "ecc_uncorrected_rising" in finding.includes
    assert assessment.verdict == "degraded"
    fewer_links = changed(board("h100"), link=3, state="inactive")
    limited = only(seen(changed(fewer_links, recovery_action="drain_and_reset")))
    assert (limited.severity, limited.includes) == ("warning", ("nvlink_down",))


def test_an_error_for_which_the_driver_asks_a_reset_is_critical() -> None:
    assert only(contained("gpu_reset")).severity == "critical"


def test_a_gpu_that_refuses_calls_is_critical_whatever_the_driver_says() -> None:
    refusing = board(
        "h100",
        faults=(Refused(kind="refused", gpu=1, return_code=16, call="nvmlDeviceGetPower*"),),
    )
    finding = only(seen(changed(refusing, 1, recovery_action="drain_and_reset")))
    assert (finding.code, finding.severity) == ("recovery_action", "critical")
    assert finding.includes == ("reset_required",)


@pytest.mark.parametrize(
    ("xid", "code", "readings"),
    [
        (64, "row_remap_failure", {"row_remap_failure": True}),
        (48, "ecc_uncorrected", {"ecc_uncorrected_volatile": 1, "ecc_dram_uncorrected": 1}),
    ],
)
def test_an_xid_that_is_over_is_told_with_what_it_has_left(
    xid: int, code: str, readings: dict[str, object]
) -> None:
    snapshot = changed(board("h100"), **readings)
    finding = only(seen(snapshot, bursts=(burst(xid, snapshot, at=T0 - 60),)))
    assert (finding.code, finding.includes) == (code, ("xid_past",))
    assert xid in [one.value for one in finding.evidence if one.reading == "xid"]


def test_an_xid_that_is_over_is_told_by_itself_where_nothing_is_left() -> None:
    snapshot = changed(board("h100"), row_remap_failure=True)
    findings = seen(snapshot, bursts=(burst(109, snapshot, at=T0 - 60),)).findings
    assert [finding.code for finding in findings] == ["row_remap_failure", "xid_past"]
