"""What is said of a node as a whole while its driver is gone or does not answer."""

from __future__ import annotations

import pytest

from mcp_gpu.gpu.health.model import Assessment
from mcp_gpu.gpu.model import Failure, Snapshot, Waiting
from support.readings import board, burst, seen


def waiting(seconds: float, *, gpu: int | None, xid: int | None = None) -> Assessment:
    """Of a node that has been read before, unless no GPU is told."""
    call = "nvmlInit" if gpu is None else "nvmlDeviceGetPowerUsage"
    snapshot = Snapshot() if gpu is None else board("h100")
    snapshot = snapshot.model_copy(
        update={"waiting": Waiting(seconds=seconds, call=call, gpu_index=gpu)}
    )
    return seen(snapshot, bursts=() if xid is None else (burst(xid, board("h100"), 2),))


@pytest.mark.parametrize(
    ("seconds", "verdict"),
    [(2.0, "healthy"), (4.9, "healthy"), (5.0, "degraded"), (44.0, "degraded"), (45.0, "failed")],
)
def test_a_blocked_call_is_a_warning_before_somebody_believes_the_node_healthy(
    seconds: float, verdict: str
) -> None:
    assert waiting(seconds, gpu=2).verdict == verdict


def test_stopped_firmware_of_a_gpu_that_is_waited_for_is_certain() -> None:
    (finding,) = waiting(12, gpu=2, xid=119).findings
    assert (finding.code, finding.gpu_index, finding.confidence) == ("gsp_timeout", 2, "high")
    assert "--id=2 " in finding.advice


def test_whose_firmware_has_stopped_is_not_claimed_before_a_gpu_is_known() -> None:
    (finding,) = waiting(12, gpu=None, xid=119).findings
    assert (finding.code, finding.confidence) == ("gsp_timeout", "medium")
    assert "the one that the Xid names" in finding.advice
    xid = next(one for one in finding.evidence if one.reading == "xid")
    place = board("h100").gpus[2].pci_bus_id
    assert place is not None
    assert xid.note == f"on {place[4:-2].lower()}"


@pytest.mark.parametrize(
    ("code", "expected", "confidence"), [(9, 4, "high"), (12, 4, "medium"), (9, None, "medium")]
)
def test_a_driver_that_should_be_there_is_missed(
    code: int, expected: int | None, confidence: str
) -> None:
    failure = Failure(code=code, name="Gone", message="It is gone.")
    snapshot = Snapshot(state="absent", failure=failure, gpu_count_expected=4)
    (finding,) = seen(snapshot, expected_gpus=expected).findings
    assert finding.code == "nvml_absent"
    assert "4 GPU(s) should be here" in finding.title
    assert finding.confidence == confidence


def test_no_driver_where_no_gpu_was_ever_expected_is_no_fault() -> None:
    failure = Failure(code=9, name="DriverNotLoaded", message="It is not loaded.")
    assessment = seen(Snapshot(state="absent", failure=failure), expected_gpus=0)
    (finding,) = assessment.findings
    assert (finding.severity, assessment.verdict) == ("info", "unknown")
