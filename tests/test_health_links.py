"""Which NVLinks are missed: with NVSwitches all, between boards what is known of their wiring."""

from __future__ import annotations

from mcp_gpu.gpu.model import Snapshot
from support.readings import PERIOD, board, changed, later, seen, watched, wired


def linked(snapshot: Snapshot, gpu: int, links: int) -> Snapshot:
    """With so many links of a GPU up."""
    for link in range(len(snapshot.vitals[gpu].links)):
        state = "active" if link < links else "inactive"
        snapshot = changed(snapshot, gpu, link, state=state)
    return changed(snapshot, gpu, nvlink_active=links)


def mesh(profile: str, *links: int) -> Snapshot:
    """Boards that are wired to each other, with so many links up on each."""
    snapshot = changed(
        board(profile, gpus=len(links)), None, nvswitch_link_count=0, fabric_state=None,
        fabric_status=None,
    )  # fmt: skip
    for gpu, up in enumerate(links):
        snapshot = linked(snapshot, gpu, up)
    return snapshot


def lost(snapshot: Snapshot, gpu: int) -> Snapshot:
    return changed(
        snapshot, gpu, state="lost", error="Off the bus.", nvlink_active=None, links=(),
        recovery_action=None, temperature_celsius=None,
    )  # fmt: skip


def test_a_board_without_a_bridge_beside_bridged_pairs_is_healthy() -> None:
    assessment = seen(mesh("h100", 12, 12, 12, 12, 0))
    assert assessment.findings == ()
    assert assessment.verdict == "healthy"


def test_a_board_that_loses_its_bridge_is_not() -> None:
    bridged = mesh("h100", 12, 12, 12, 12)
    (finding,) = watched(bridged, linked(bridged, 3, 0)).findings
    assert (finding.code, finding.gpu_index) == ("nvlink_down", 3)
    assert "12 were up before" in finding.title or "its peers have 12" in finding.title


def test_a_board_with_fewer_links_than_two_peers_is_told() -> None:
    (finding,) = seen(mesh("h100", 12, 12, 12, 8)).findings
    assert (finding.code, finding.gpu_index) == ("nvlink_down", 3)


def test_a_board_on_nvswitches_without_a_link_is_told_by_its_peers() -> None:
    """Of links that are all down it may not be read where they end."""
    dead = changed(linked(board("h100"), 2, 0), 2, nvswitch_link_count=None)
    (finding,) = seen(dead).findings
    assert (finding.code, finding.gpu_index) == ("nvlink_down", 2)


def test_what_a_lost_board_takes_down_at_its_neighbours_is_its_story() -> None:
    whole = mesh("a100-40", 12, 12, 12, 12)
    broken = lost(mesh("a100-40", 8, 8, 8, 12), 3)
    assessment = watched(whole, broken)
    assert [(f.code, f.gpu_index) for f in assessment.findings] == [("gpu_lost", 3)]
    assert [gpu.verdict for gpu in assessment.gpus] == ["healthy"] * 3 + ["failed"]
    for gpu in assessment.gpus[:3]:
        assert gpu.not_checked["nvlink"] == "links may end at GPU 3, which cannot be read"


def test_on_nvswitches_a_lost_board_explains_no_link_of_another() -> None:
    assessment = seen(lost(linked(board("h100"), 0, 17), 3))
    assert [(f.code, f.gpu_index) for f in assessment.findings] == [
        ("gpu_lost", 3), ("nvlink_down", 0),
    ]  # fmt: skip


def test_a_registration_may_take_its_time_after_a_boot() -> None:
    young = changed(wired(board("h100")), None, fabric_state="in_progress")
    for assessment in (seen(young), watched(*[young] * 10)):
        assert {f.action for f in assessment.findings} == {"NONE"}
        assert {f.confidence for f in assessment.findings} == {"medium"}
        assert assessment.verdict == "degraded"
    assert {f.action for f in watched(*[young] * 11).findings} == {"RESTART_FM"}


def test_a_registration_that_has_begun_anew_is_young_again() -> None:
    young = changed(board("h100"), None, fabric_state="in_progress")
    assessment = watched(*[young] * 9, board("h100"), young, young)
    assert {f.action for f in assessment.findings} == {"NONE"}
    assert assessment.rates_over_seconds == 11 * PERIOD
    assert seen(later(young, 0.5)).findings[0].action == "NONE"
