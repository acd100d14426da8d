"""What outlives a new initialisation of NVML: the past of GPUs whose counters surely ran on."""

from __future__ import annotations

from typing import Any

import pytest

from mcp_gpu.gpu.health.assess import assess
from mcp_gpu.gpu.health.look import NO_HISTORY
from mcp_gpu.gpu.history import History, Past
from mcp_gpu.gpu.model import Snapshot
from mcp_gpu.gpu.nvml import Nvml
from mcp_gpu.gpu.reader import Reader
from mcp_gpu.gpu.simulator import Node
from mcp_gpu.gpu.simulator.binding import installed
from mcp_gpu.gpu.simulator.faults import Lost, PcieReplays
from support.readings import PERIOD, T0, board, changed, later

LIMIT_WATTS = board("h100").gpus[0].power_limit_max_watts or 0.0


def anew(snapshot: Snapshot, seconds: float = PERIOD) -> Snapshot:
    """The same in the next generation, read later."""
    return later(snapshot, seconds).model_copy(update={"generation": snapshot.generation + 1})


def past_of(before: Snapshot, after: Snapshot) -> Past:
    """What is known once one generation was followed by another."""
    history = History()
    history.add(before)
    history.add(after)
    return history.of(after.generation)


def test_what_ran_on_keeps_its_past_where_it_is_now() -> None:
    before = changed(board("h100"), pcie_replays=100)
    after = anew(before)
    swapped = after.model_copy(update={"gpus": after.gpus[::-1], "vitals": after.vitals[::-1]})
    past = past_of(before, swapped)
    assert past.first == past.recent[0]
    assert past.first.generation == swapped.generation
    assert past.first.slow_at == before.slow_at
    assert [gpu.uuid for gpu in past.first.gpus] == [gpu.uuid for gpu in swapped.gpus]
    assert past.first.vitals[3].pcie_replays == 100
    assert past.recent[1:] == (swapped,)


@pytest.mark.parametrize(
    "change",
    [
        {"uuid": "GPU-another"},
        {"uuid": None},
        {"persistence_mode": False},
        {"energy_joules": None},
        {"energy_joules": 2 * LIMIT_WATTS * PERIOD},  # so much may have come since
        {"energy_joules": 100_000.0},  # less than before
        {"power_limit_max_watts": None},
        {"pcie_replays": 1},
        {"pcie_replays": None},
        {"slowed_by_power_cap_seconds": 0.0},
    ],
    ids=str,
)
def test_a_gpu_that_may_have_begun_anew_has_no_past(change: dict[str, Any]) -> None:
    before = changed(board("h100"), None, pcie_replays=50, slowed_by_power_cap_seconds=9.0)
    if "energy_joules" in change and change["energy_joules"] != 100_000.0:
        before = changed(before, energy_joules=1.0)
    past = past_of(before, anew(changed(before, **change)))
    assert past.first is not None
    assert (past.first.gpus[0].state, past.first.gpus[1].state) == ("unreadable", "ok")
    assert past.first.gpus[0].energy_joules is past.first.vitals[0].pcie_replays is None


def test_a_driver_of_another_version_was_loaded_anew() -> None:
    before = board("h100")
    after = anew(before).model_copy(update={"driver_version": "595.45.04"})
    assert past_of(before, after) == Past(after, (after,))


def test_a_long_time_without_a_reading_shows_nothing() -> None:
    before = board("h100")
    used = before.gpus[0].energy_joules
    assert used is not None
    longest = used / (2 * LIMIT_WATTS)
    assert len(past_of(before, anew(before, longest - 1)).recent) == 2
    assert len(past_of(before, anew(before, longest + 1)).recent) == 1


def test_a_clock_that_was_set_back_shows_nothing() -> None:
    before = board("h100")
    assert len(past_of(before, anew(before, -1.0)).recent) == 1


def test_a_driver_that_has_gone_takes_the_past_with_it() -> None:
    history = History()
    history.add(board("h100"))
    history.forget()
    assert history.of(board("h100").generation) == Past()
    after = anew(board("h100"))
    history.add(after)
    assert history.of(after.generation) == Past(after, (after,))


def test_a_gpu_without_a_past_is_not_cleared_by_the_readings_it_lacks() -> None:
    """A slow PCIe generation counts twice in a row, and once is not never."""
    before = changed(
        board("h100", load=0.9), None, utilization_gpu_percent=95, pcie_generation_current=5
    )
    after = anew(changed(before, uuid="GPU-another", pcie_generation_current=3))
    assessment = assess(after, past_of(before, after), clock=lambda: T0 + PERIOD + 1)
    assert assessment.gpus[0].not_checked["pcie_generation"] == NO_HISTORY
    assert "pcie_generation" not in assessment.gpus[1].not_checked


def test_while_a_gpu_is_lost_the_rates_of_the_others_go_on() -> None:
    """As the collector reads: anew ever again, in the hope that the GPU comes back."""
    moment = [T0]
    node = Node("node", "h100", gpus=4, load=0.9, clock=lambda: moment[0])
    history = History()
    with installed(node):
        reader = Reader(Nvml(), clock=lambda: moment[0])
        for step in range(6):
            moment[0] = T0 + PERIOD * step
            if step == 2:
                node.faults = (
                    Lost(kind="lost", gpu=3), PcieReplays(kind="pcie_replays", gpu=0, per_second=2),
                )  # fmt: skip
            reader.close()
            reader.open()
            reader.read_slow()
            snapshot = reader.read_fast()
            history.add(snapshot)
        reader.close()
    assert snapshot.generation == 6
    assessment = assess(snapshot, history.of(6), clock=lambda: moment[0] + 1)
    assert assessment.rates_over_seconds == 5 * PERIOD
    assert [(f.code, f.gpu_index) for f in assessment.findings] == [
        ("gpu_lost", 3), ("pcie_replays", 0),
    ]  # fmt: skip
    for gpu in assessment.gpus[:3]:
        assert NO_HISTORY not in gpu.not_checked.values()
