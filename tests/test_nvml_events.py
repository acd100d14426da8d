"""NVML's Xids through the real binding: a thread that nobody waits for, and that lets NVML go."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pynvml
import pytest

from mcp_gpu.gpu import events as events_module
from mcp_gpu.gpu import simulator
from mcp_gpu.gpu.collector import Collector
from mcp_gpu.gpu.events import XidEvents
from mcp_gpu.gpu.nvml import Nvml
from mcp_gpu.gpu.simulator.faults import Hang, Lost, MissingSymbol, Unreadable, WholeNode, Xid
from mcp_gpu.gpu.xid.model import XidEvent

LIMIT_SECONDS = 20
NOON = 1_790_000_000.0
WAIT = "nvmlEventSetWait_v2"


@pytest.fixture
def node() -> Iterator[simulator.Node]:
    with simulator.installed(simulator.Node("one", "h100", gpus=4)) as node:
        yield node


def until(happened: Callable[[], bool]) -> None:
    """Wait for something that another thread does."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not happened():
        assert time.monotonic() < deadline
        threading.Event().wait(0.002)


class Listening:
    """`XidEvents` over NVML that is open, and what they told."""

    def __init__(self) -> None:
        self.told: list[XidEvent] = []
        self.events = XidEvents(
            self.told.append, boot_id="b" * 32, wait_milliseconds=20, clock=lambda: NOON
        )

    def begin(self) -> None:
        self.events.ensure()
        until(lambda: self.events.state.live)


@contextmanager
def listening(node: simulator.Node) -> Iterator[Listening]:
    nvml = Nvml()
    nvml.open()
    one = Listening()
    try:
        yield one
    finally:
        node.faults = ()
        one.events.release()
        nvml.close()


def test_an_xid_is_told_with_its_gpu(node: simulator.Node) -> None:
    with listening(node) as one:
        one.begin()
        assert one.events.state.covers_since == NOON
        node.faults = [Xid(kind="xid", gpu=2, xid=31, count=2), Xid(kind="xid", gpu=1, xid=94)]
        until(lambda: len(one.told) == 3)
    bus_ids = [gpu.answer("nvmlDeviceGetPciInfo_v3")["busId"] for gpu in node.gpus]
    assert bus_ids[2] == "00000000:75:00.0"
    first, _, last = one.told
    assert first == XidEvent(31, NOON, "nvml", bus_id="0000:75:00", boot_id="b" * 32)
    assert (last.code, last.bus_id) == (94, bus_ids[1][4:-2].lower())


@pytest.mark.parametrize("xid", [79, 119, 120])
def test_what_nvml_never_tells_is_not_told(node: simulator.Node, xid: int) -> None:
    with listening(node) as one:
        one.begin()
        node.faults = [Xid(kind="xid", gpu=0, xid=xid), Xid(kind="xid", gpu=0, xid=13)]
        until(lambda: bool(one.told))
    assert [event.code for event in one.told] == [13]


def test_a_gpu_that_refuses_costs_only_itself(node: simulator.Node) -> None:
    node.faults = [Unreadable(kind="unreadable", gpu=1)]
    node.gpus[3].answers = {**node.gpus[3].answers, "nvmlDeviceGetSupportedEventTypes": 0x7}
    with listening(node) as one:
        one.begin()
        assert one.events.state.message == (
            "NVML events: not of GPU 1 (error(999)), GPU 3 (not_supported)"
        )
        node.faults = [*node.faults, Xid(kind="xid", gpu=2, xid=31)]
        until(lambda: len(one.told) == 1)


def test_gpus_that_refused_are_asked_again(
    node: simulator.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "_AGAIN_SECONDS", 0.02)
    node.faults = [Unreadable(kind="unreadable", gpu=gpu) for gpu in range(4)]
    with listening(node) as one:
        one.events.ensure()
        until(lambda: "GPU 3" in one.events.state.message)
        assert not one.events.state.live
        node.faults = ()
        until(lambda: one.events.state.live)
        assert one.events.state.message == ""


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (MissingSymbol(kind="missing_symbol", call="nvmlEventSetCreate"), "FunctionNotFound"),
        (WholeNode(kind="driver_not_loaded"), "DriverNotLoaded"),
    ],
)
def test_without_events_it_is_said_why(
    node: simulator.Node, fault: MissingSymbol | WholeNode, said: str
) -> None:
    with listening(node) as one:
        node.faults = [fault]
        one.events.ensure()
        until(lambda: said in one.events.state.message)
        assert not one.events.state.live


def test_a_wait_that_fails_is_begun_anew(
    node: simulator.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "_RETRY_SECONDS", 0.01)
    with listening(node) as one:
        one.begin()
        node.faults = [Lost(kind="lost", gpu=0), MissingSymbol(kind="missing_symbol", call=WAIT)]
        until(lambda: not one.events.state.live)
        node.faults = [Lost(kind="lost", gpu=0)]
        until(lambda: one.events.state.live)
        assert one.events.state.message == "NVML events: not of GPU 0 (gpu_lost)"


def test_waits_that_fail_now_and_then_are_each_begun_anew_soon(
    node: simulator.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pause that doubled for ever would be longer than the test may take."""
    monkeypatch.setattr(events_module, "_RETRY_SECONDS", 0.01)
    with listening(node) as one:
        for number in range(1, 14):
            one.begin()
            node.faults = [Xid(kind="xid", gpu=0, xid=31)]
            until(lambda number=number: len(one.told) == number)  # type: ignore[misc]
            node.faults = [MissingSymbol(kind="missing_symbol", call=WAIT)]
            until(lambda: not one.events.state.live)
            node.faults = ()


def test_released_it_holds_nothing_of_nvml(node: simulator.Node) -> None:
    with listening(node) as one:
        one.begin()
        assert pynvml.nvmlLib.initialised == 2
        one.events.release()
        assert pynvml.nvmlLib.initialised == 1
        assert pynvml.nvmlLib.event_sets == {}
        assert one.events.state.message == "NVML is not open"


def test_a_thread_stuck_in_the_driver_is_left_behind_and_replaced(
    node: simulator.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "LET_GO_SECONDS", 0.02)
    monkeypatch.setattr(events_module, "STUCK_SECONDS", 0.1)
    with listening(node) as one:
        one.begin()
        stuck = one.events._listener
        node.faults = [Hang(kind="hang", seconds=600, call=WAIT)]
        assert stuck is not None
        until(lambda: stuck.calling_seconds > 0.5)
        assert "has not returned" in one.events.state.message
        assert not one.events.state.live
        one.events.release()
        assert one.events._stuck == [stuck]

        # A new generation: another thread, which gets stuck in its turn, and so on to a limit.
        def all_stuck() -> bool:
            one.events.ensure()
            return len(one.events._stuck) == events_module.MAX_STUCK

        until(all_stuck)
        assert one.events._listener is None
        assert one.events.state.message == "NVML events: 3 threads are stuck in the driver"

        node.faults = ()
        until(lambda: not any(listener.alive for listener in one.events._stuck))
        one.begin()
        node.faults = [Xid(kind="xid", gpu=0, xid=31)]
        until(lambda: len(one.told) == 1)
    assert pynvml.nvmlLib.initialised == 0


def test_the_collector_lets_go_for_a_new_generation_and_listens_again(
    node: simulator.Node,
) -> None:
    told: list[XidEvent] = []
    events = XidEvents(told.append, wait_milliseconds=20)
    collector = Collector(fast_seconds=0.02, slow_seconds=0.05, retry_seconds=0.02, events=events)
    collector.start()
    try:
        until(lambda: events.state.live)
        assert events.state.message == ""
        node.faults = [Lost(kind="lost", gpu=3)]
        until(lambda: collector.snapshot.generation > 1)
        until(lambda: "GPU 3 (gpu_lost)" in events.state.message)
        node.faults = ()
        until(lambda: collector.snapshot.gpus[3].state == "ok")
        until(lambda: events.state.live and not events.state.message)
        node.faults = [Xid(kind="xid", gpu=3, xid=94)]
        until(lambda: [event.code for event in told] == [94])
    finally:
        node.faults = ()
        collector.stop()
        assert collector.join(LIMIT_SECONDS)
    assert pynvml.nvmlLib.initialised == 0
