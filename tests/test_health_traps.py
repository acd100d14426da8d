"""Healthy boards that look sick to naive rules: not one critical or warning finding."""

from __future__ import annotations

import pytest

from mcp_gpu.gpu import simulator
from mcp_gpu.gpu.health.assess import assess
from mcp_gpu.gpu.health.model import Assessment
from mcp_gpu.gpu.history import History, Past
from mcp_gpu.gpu.model import Snapshot
from support.readings import T0, board, changed, later, seen, watched, wired, without


def grave(assessment: Assessment) -> list[str]:
    return [f"{f.code}: {f.title}" for f in assessment.findings if f.severity != "info"]


def assert_healthy(assessment: Assessment) -> None:
    assert grave(assessment) == []
    assert assessment.verdict == "healthy"


@pytest.mark.parametrize("load", [0.0, 0.9], ids=["rest", "load"])
@pytest.mark.parametrize("profile", simulator.shipped_profiles())
def test_a_board_as_it_was_captured_is_healthy(profile: str, load: float) -> None:
    """Read at different moments of its course, ten minutes long, by the collector's own means."""
    moment = [T0]
    node = simulator.Node(profile, profile, load=load, clock=lambda: moment[0])
    history = History()
    for step in range(6):
        moment[0] = T0 + 120 * step
        snapshot = simulator.snapshot(node, clock=lambda: moment[0])
        history.add(snapshot)
        assessment = assess(snapshot, history.of(snapshot.generation), clock=lambda: moment[0] + 1)
        assert_healthy(assessment)
    assert assessment.rates_over_seconds == 600
    assert {gpu.verdict for gpu in assessment.gpus} == {"healthy"}


def test_replays_of_a_life_are_no_fault_and_a_few_more_are_none() -> None:
    """H100 boards with 106 to 174 were healthy."""
    life = [106, 150, 174, 120]
    snapshot = board("h100")
    for gpu, replays in enumerate(life):
        snapshot = changed(snapshot, gpu, pcie_replays=replays)
    some_more = changed(snapshot, 2, pcie_replays=174 + 10)
    assert_healthy(watched(snapshot, some_more))


def test_hours_under_the_power_cap_are_no_fault() -> None:
    """A healthy H100 had 7,015 s of it, and all of a busy minute may be."""
    before = changed(board("h100"), None, slowed_by_power_cap_seconds=7015.66)
    after = changed(board("h100"), None, slowed_by_power_cap_seconds=7045.66)
    assert_healthy(watched(before, after))


def test_sync_boost_is_no_fault() -> None:
    before = changed(board("h100"), None, slowed_by_sync_boost_seconds=0.0)
    after = changed(board("h100"), None, slowed_by_sync_boost_seconds=30.0)
    assert_healthy(watched(before, after))


def test_a_board_at_rest_lowers_its_pcie_generation() -> None:
    """An idle RTX 3090: generation 1 of 4, beside others that work."""
    busy = changed(board("rtx4090"), None, pcie_generation_current=4, utilization_gpu_percent=99)
    idle = changed(busy, pcie_generation_current=1, utilization_gpu_percent=0)
    assert_healthy(watched(idle, idle))
    assert seen(idle).gpus[0].not_checked["pcie_generation"] == "not under load"


def test_a_board_that_has_just_begun_to_work_is_not_slow() -> None:
    """Its generation was read while it was at rest, its load a moment ago."""
    rest = changed(board("h100"), None, pcie_generation_current=5, utilization_gpu_percent=99)
    rest = changed(rest, pcie_generation_current=1, utilization_gpu_percent=0)
    first, second = later(rest, 0), later(rest, 30)
    now = changed(second, utilization_gpu_percent=99).model_copy(update={"fast_at": T0 + 50})
    assert_healthy(assess(now, Past(first, (first, second)), clock=lambda: T0 + 51))
    moment = changed(second, utilization_gpu_percent=99)
    assert_healthy(assess(moment, Past(first, (first, moment)), clock=lambda: T0 + 31))


@pytest.mark.parametrize("profile", ["t4", "l40s"])
def test_eight_lanes_of_sixteen_on_every_board_are_how_some_clouds_are(profile: str) -> None:
    snapshot = changed(board(profile), None, pcie_width_current=8, pcie_width_max=16)
    assert_healthy(watched(snapshot, snapshot))


def test_one_peer_is_no_measure() -> None:
    pair = changed(board("h100", gpus=2), pcie_width_current=8)
    assert_healthy(seen(pair))
    reason = "fewer than two peers of the same model to compare with"
    assert seen(pair).gpus[0].not_checked["pcie_width"] == reason


def test_peers_of_another_model_or_in_other_slots_are_no_measure() -> None:
    other = changed(board("h100"), pcie_width_current=8, name="NVIDIA L4")
    assert_healthy(seen(other))
    narrow = changed(board("h100"), pcie_width_current=8, pcie_width_max=8)
    assert_healthy(seen(narrow))


def test_corrected_errors_of_a_life_are_no_fault() -> None:
    """A healthy T4 had one."""
    snapshot = changed(board("t4"), None, ecc_dram_corrected_lifetime=1, ecc_dram_corrected=1)
    assert_healthy(watched(snapshot, snapshot))


def test_errors_of_a_former_life_that_were_dealt_with_are_no_fault() -> None:
    snapshot = changed(
        board("h100"), ecc_dram_uncorrected_lifetime=3, row_remaps_uncorrected=3,
        remap_banks_low=1,
    )  # fmt: skip
    assert_healthy(watched(snapshot, snapshot))


def test_a_completed_fabric_without_a_health_summary_is_healthy() -> None:
    """H100: registration complete and successful, health N/A."""
    snapshot = board("h100")
    assert (snapshot.gpus[0].fabric_state, snapshot.gpus[0].fabric_health) == ("completed", None)
    assert_healthy(seen(snapshot))


def test_a_pcie_board_without_a_bridge_has_no_links_and_is_healthy() -> None:
    bridgeless = wired(board("a100-80"), state="inactive")
    bridgeless = changed(bridgeless, None, nvswitch_link_count=0, nvlink_active=0)
    assert_healthy(watched(bridgeless, bridgeless))


def test_a_pair_with_two_bridges_of_three_is_healthy() -> None:
    pair = board("a100-80", gpus=2)
    for gpu in range(2):
        for link in range(8, 12):
            pair = changed(pair, gpu, link, state="inactive")
    pair = changed(pair, None, nvswitch_link_count=0, nvlink_active=8)
    assert_healthy(watched(pair, pair))


def test_a_single_gpu_of_a_virtual_machine_has_nobody_to_link_to() -> None:
    one = changed(wired(board("h100", gpus=1), state="inactive"), nvlink_active=0)
    assert_healthy(watched(one, one))


def test_a_link_that_sleeps_is_up() -> None:
    snapshot = changed(wired(board("h100"), state="sleep"), None, nvlink_active=0)
    assert_healthy(seen(snapshot))


def test_links_of_a_gpu_that_is_cut_by_mig_are_not_judged() -> None:
    cut = changed(wired(board("h100"), state="inactive"), None, nvlink_active=0)
    cut = changed(cut, None, mig_mode_current=True, mig_mode_pending=True)
    assert_healthy(seen(cut))
    assert seen(cut).gpus[0].not_checked["nvlink"] == "mig_active"


def cut_by_mig(driver: str) -> Snapshot:
    """A pair of which GPU 0 is cut."""
    cut = simulator.Node("cut", "a100-80", gpus=2, driver=driver, mig={0: ("1g.10gb", "2g.20gb")})
    return simulator.snapshot(cut, clock=lambda: T0)


def test_a_mig_parent_is_healthy_by_the_drivers_word() -> None:
    assessment = seen(cut_by_mig("570.148.08"))
    assert_healthy(assessment)
    assert assessment.gpus[0].not_checked["row_remap"] == "mig_active"


@pytest.mark.parametrize("told", [None, 0], ids=["refused", "zero"])
def test_a_mig_parent_whose_memory_nobody_sees_is_unknown(told: int | None) -> None:
    """R535 has no recovery action, and its temperature says nothing of a GPU's memory. Where the
    parent's ECC counters are answered all the same they stay at 0."""
    snapshot = cut_by_mig("535.54.03")
    if told is not None:
        snapshot = changed(snapshot, ecc_uncorrected_volatile=told, ecc_dram_uncorrected=told)
    assessment = seen(snapshot)
    assert grave(assessment) == []
    assert [gpu.verdict for gpu in assessment.gpus] == ["unknown", "healthy"]
    assert "temperature" not in assessment.gpus[0].not_checked
    assert assessment.gpus[0].not_checked["ecc"] == "mig_active"


def test_recoveries_that_succeeded_and_the_lowest_error_rate_are_how_links_live() -> None:
    before = wired(
        board("b200"), recoveries_successful=0, effective_ber=15e-255, symbol_ber=15e-255
    )
    after = wired(before, recoveries_successful=3, effective_ber=1e-13, symbol_errors=5)
    assert_healthy(watched(before, after))


def test_a_momentary_bit_is_nothing_where_time_is_counted() -> None:
    bits = ("hw_slowdown", "hw_thermal_slowdown", "sw_thermal_slowdown")
    snapshot = changed(board("h100"), None, throttle_reasons=bits)
    assert watched(snapshot, snapshot).findings == ()
    assert seen(snapshot).findings == ()


def test_a_gpu_cut_off_by_an_old_driver_is_healthy_by_what_it_tells() -> None:
    assessment = seen(board("h100", driver="535.54.03"))
    assert_healthy(assessment)
    assert assessment.gpus[0].not_checked["recovery_action"] == "driver_too_old"


def test_a_geforce_is_healthy_by_what_it_tells() -> None:
    assert_healthy(seen(board("rtx4090")))


def test_a_vgpu_guest_is_healthy_by_its_ecc_counters() -> None:
    guest = without(
        board("t4"), "not_supported", "recovery_action", "temperature_celsius",
        "throttle_reasons", "pcie_width_current", "pcie_generation_current", "pcie_replays",
        gpu=None,
    )  # fmt: skip
    assert_healthy(seen(guest))


def test_warm_boards_below_their_limits_are_healthy() -> None:
    assert_healthy(seen(changed(board("h100"), None, temperature_margin_celsius=1)))
    assert_healthy(seen(changed(board("t4"), None, temperature_celsius=84)))


def test_fifteen_retired_pages_are_how_boards_age() -> None:
    aged = changed(board("t4"), retired_pages_uncorrected=15, retired_pages_corrected=30)
    assert_healthy(watched(aged, aged))


def test_more_gpus_than_expected_are_no_fault() -> None:
    assert_healthy(seen(board("h100"), expected_gpus=2))


def test_a_node_whose_driver_is_not_there_is_not_healthy_either() -> None:
    assessment = seen(Snapshot())
    assert (grave(assessment), assessment.verdict) == ([], "unknown")
