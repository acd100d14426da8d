"""GPM: what units did between two samples, on boards that have it, and what the samples cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pynvml
import pytest

from mcp_gpu.gpu import simulator
from mcp_gpu.gpu.collector import Collector
from mcp_gpu.gpu.gpm import METRICS, Gpm
from mcp_gpu.gpu.meter import APART_SECONDS
from mcp_gpu.gpu.nvml import Nvml
from mcp_gpu.gpu.reader import Reader
from mcp_gpu.gpu.simulator.faults import Fault, Lost, MissingSymbol, Refused
from mcp_gpu.gpu.wire import NOT_REPORTED

NOON = 1_800_000_000.0


class Clock:
    """Stands still until told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Machine:
    """A reader of a simulated node, whose calls are counted."""

    def __init__(self, node: simulator.Node) -> None:
        self.node, self.clock = node, Clock()
        self.calls = Counter[str]()
        enter = node.enter

        def counted(call: str, gpu_index: int | None) -> None:
            self.calls[call] += 1
            enter(call, gpu_index)

        node.enter = counted  # type: ignore[method-assign]
        self.reader = Reader(Nvml(), clock=lambda: NOON, ticks=self.clock)
        self.reader.open()
        self.reader.read_slow()

    def fast(self, seconds: float = 2.0) -> None:
        self.clock.now += seconds
        self.reader.read_fast()

    @property
    def held(self) -> int:
        """Samples that are allocated and not freed."""
        return len(pynvml.nvmlLib.samples)


@pytest.fixture
def machine() -> Iterator[Callable[..., Machine]]:
    made: list[Machine] = []

    def make(profile: str, **options: Any) -> Machine:
        node = simulator.Node("one", profile, clock=lambda: NOON, **options)
        simulator.install(node)
        made.append(Machine(node))
        return made[-1]

    yield make
    for each in made:
        each.reader.close()
        assert each.held == 0
    simulator.uninstall()


@pytest.mark.parametrize("profile", ["h100", "h200", "b200", "gb200"])
def test_it_is_what_lies_between_the_last_two_samples(
    profile: str, machine: Callable[..., Machine]
) -> None:
    one = machine(profile, gpus=2, load=0.5)
    one.fast()
    assert one.reader.read_rest().gpus[0].unavailable["gpm"] == "first_sample"
    one.fast()
    one.fast(3.0)
    gpus = one.reader.read_rest().gpus
    assert [gpu.gpm for gpu in gpus] != [None, None]
    for gpu in gpus:
        assert gpu.gpm is not None
        assert "gpm" not in gpu.unavailable
        assert (gpu.gpm.seconds, gpu.gpm.measured_at) == (3.0, "2027-01-15T08:00:00Z")
        assert gpu.gpm.unavailable == {}
        activity = one.node.gpus[gpu.index].activity
        assert gpu.gpm.sm_activity_percent == pytest.approx(100 * activity, abs=0.01)
        assert gpu.gpm.fp64_percent == 0.0
        assert gpu.gpm.nvlink_receive_bytes_per_second == round(90_000 * 2**20 * activity)
        assert gpu.gpm.nvlink_transmit_bytes_per_second == round(88_000 * 2**20 * activity)


@pytest.mark.parametrize("profile", ["a100-80", "l4", "l40s", "t4", "rtx4090"])
def test_older_boards_have_none_and_are_asked_once(
    profile: str, machine: Callable[..., Machine]
) -> None:
    one = machine(profile, gpus=1)
    for _ in range(3):
        one.fast()
    (gpu,) = one.reader.read_rest().gpus
    assert (gpu.gpm, gpu.unavailable["gpm"]) == (None, "not_supported")
    assert {call: n for call, n in one.calls.items() if "Gpm" in call} == {
        "nvmlGpmQueryDeviceSupport": 1
    }


def test_a_driver_without_it_is_too_old(machine: Callable[..., Machine]) -> None:
    one = machine("h100", gpus=1, driver="515.105.01")
    one.fast()
    one.fast()
    (gpu,) = one.reader.read_rest().gpus
    assert (gpu.gpm, gpu.unavailable["gpm"]) == (None, "driver_too_old")


def test_a_fast_reading_takes_one_sample_a_gpu_and_computes_nothing(
    machine: Callable[..., Machine],
) -> None:
    one = machine("h100")
    one.fast()
    one.fast()
    one.calls.clear()
    one.fast()
    assert {call: n for call, n in one.calls.items() if "Gpm" in call} == {"nvmlGpmSampleGet": 8}
    one.calls.clear()
    one.reader.read_rest()
    assert one.calls["nvmlGpmMetricsGet"] == 8
    assert one.held == 16


def test_samples_that_are_too_close_are_not_taken(machine: Callable[..., Machine]) -> None:
    one = machine("h100", gpus=1)
    one.fast()
    one.fast(APART_SECONDS / 2)
    assert one.calls["nvmlGpmSampleGet"] == 1
    one.fast(APART_SECONDS / 2)
    gpm = one.reader.read_rest().gpus[0].gpm
    assert gpm is not None
    assert gpm.seconds == APART_SECONDS


def test_mig_instances_are_sampled_each_and_freed_when_they_go(
    machine: Callable[..., Machine],
) -> None:
    one = machine("h100", gpus=1, load=0.5, mig={0: ("1g.10gb", "1g.10gb")})
    one.fast()
    one.fast()
    (gpu,) = one.reader.read_rest().gpus
    assert gpu.gpm is not None
    for device in gpu.mig_devices:
        assert device.gpm is not None
        assert "gpm" not in device.unavailable
    assert one.held == 6
    board = one.node.gpus[0]
    board.answers = {
        **board.answers,
        "nvmlDeviceGetMigDeviceHandleByIndex": board.answers["nvmlDeviceGetMigDeviceHandleByIndex"][
            :1
        ],
    }
    one.reader.read_slow()
    one.fast()
    assert one.held == 4


def test_what_a_driver_refuses_of_it_has_its_reason(machine: Callable[..., Machine]) -> None:
    one = machine("h100", gpus=1)
    board = one.node.gpus[0]
    told = {**board.answers["nvmlGpmMetricsGet"], "60": {"error": 3}, "10": math.nan}
    board.answers = {**board.answers, "nvmlGpmMetricsGet": told}
    one.fast()
    one.fast()
    gpm = one.reader.read_rest().gpus[0].gpm
    assert gpm is not None
    assert gpm.unavailable == {
        "nvlink_receive_bytes_per_second": "not_supported",
        "dram_bandwidth_percent": "error(21)",
    }


@pytest.mark.parametrize(
    ("call", "code", "reason"),
    [
        ("nvmlGpmSampleGet", 4, "no_permission"),
        ("nvmlGpmMetricsGet", 999, "error(999)"),
        ("nvmlGpmQueryDeviceSupport", 999, "error(999)"),
    ],
)
def test_a_refusal_costs_the_gpm_alone(
    call: str, code: int, reason: str, machine: Callable[..., Machine]
) -> None:
    one = machine("h100", gpus=1)
    one.node.faults = [Refused(kind="refused", gpu=0, call=call, return_code=code)]
    one.fast()
    one.fast()
    (gpu,) = one.reader.read_rest().gpus
    assert (gpu.state, gpu.gpm, gpu.unavailable["gpm"]) == ("ok", None, reason)
    one.node.faults = []
    for _ in range(2):
        one.fast()
    again = one.reader.read_rest().gpus[0]
    lasting = reason == "no_permission"
    assert (again.gpm is None) == lasting


@pytest.mark.parametrize(
    "fault",
    [
        Lost(kind="lost", gpu=0),
        MissingSymbol(kind="missing_symbol", call="nvmlGpmSampleFree"),
        Refused(kind="refused", gpu=0, call="nvmlGpmSampleGet", return_code=15),
    ],
)
def test_samples_do_not_outlive_their_generation(
    fault: Fault, machine: Callable[..., Machine]
) -> None:
    one = machine("h100", gpus=2)
    one.fast()
    one.fast()
    assert one.held == 4
    one.node.faults = [fault]
    one.fast()
    one.reader.read_rest()
    one.node.faults = []
    one.reader.close()
    assert one.held == 0
    one.reader.open()
    one.reader.read_slow()
    one.fast()
    assert one.reader.read_rest().gpus[0].unavailable["gpm"] == "first_sample"


async def test_it_is_computed_when_somebody_asks() -> None:
    with simulator.installed(simulator.Node("one", "h100", gpus=1, load=0.5)):
        collector = Collector(fast_seconds=0.01, slow_seconds=30)
        collector.start()
        try:
            with anyio.fail_after(30):
                first = await collector.first(20)
                assert first.gpus[0].unavailable["gpm"] == "not_read"
                assert first.wiring is None
                while (await collector.complete(0.0, 20)).gpus[0].gpm is None:
                    pass
        finally:
            collector.stop()
            assert collector.join(10)
        assert len(pynvml.nvmlLib.samples) == 0


def test_an_older_agent_leaves_it_out() -> None:
    assert Gpm().unavailable == dict.fromkeys(METRICS, NOT_REPORTED)
