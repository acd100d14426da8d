"""The collector's promises: never blocks, never lies about age, comes back by itself."""

import gc
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import anyio
import pytest

from mcp_gpu.gpu import collector as collector_module
from mcp_gpu.gpu import simulator
from mcp_gpu.gpu.collector import Collector
from mcp_gpu.gpu.errors import NvmlUnavailable
from mcp_gpu.gpu.history import WINDOW, History, Past
from mcp_gpu.gpu.model import Snapshot
from mcp_gpu.gpu.nvml import Nvml
from mcp_gpu.gpu.reader import Reader
from mcp_gpu.gpu.simulator.faults import Hang, Lost, Unreadable, WholeNode

LIMIT_SECONDS = 20
QUICK = {"fast_seconds": 0.02, "slow_seconds": 0.05, "retry_seconds": 0.02}


@pytest.fixture
def node() -> Iterator[simulator.Node]:
    with simulator.installed(simulator.Node("one", "h100", gpus=4, load=0.5)) as node:
        yield node


@asynccontextmanager
async def collecting(node: simulator.Node, **options: float) -> AsyncIterator[Collector]:
    """A running collector, whose thread has ended when the block is left."""
    collector = Collector(**{**QUICK, **options})  # type: ignore[arg-type]
    collector.start()
    try:
        with anyio.fail_after(LIMIT_SECONDS):
            yield collector
    finally:
        node.faults = ()
        collector.stop()
        assert collector.join(LIMIT_SECONDS)


async def until(collector: Collector, wanted: Callable[[Snapshot], bool]) -> Snapshot:
    await collector._until(lambda: wanted(collector.snapshot))
    return collector.snapshot


async def happened(event: threading.Event) -> None:
    await anyio.to_thread.run_sync(event.wait, LIMIT_SECONDS, abandon_on_cancel=True)
    assert event.is_set()


async def test_before_the_first_reading_the_state_is_starting(node: simulator.Node) -> None:
    assert Collector().snapshot == Snapshot(simulated=True)


async def test_the_first_snapshot_is_complete(node: simulator.Node) -> None:
    async with collecting(node) as collector:
        snapshot = await collector.first(LIMIT_SECONDS)
    assert (snapshot.state, snapshot.generation, snapshot.simulated) == ("ok", 1, True)
    assert [gpu.state for gpu in snapshot.gpus] == ["ok"] * 4
    assert None not in (snapshot.static_at, snapshot.slow_at, snapshot.fast_at)


async def test_a_snapshot_that_is_young_enough_is_not_read_again(node: simulator.Node) -> None:
    async with collecting(node, fast_seconds=600, slow_seconds=600) as collector:
        first = await collector.first(LIMIT_SECONDS)
        assert await collector.fresh(600, LIMIT_SECONDS) is first


async def test_a_snapshot_that_is_too_old_is_read_again(node: simulator.Node) -> None:
    async with collecting(node, fast_seconds=600, slow_seconds=600) as collector:
        first = await collector.first(LIMIT_SECONDS)
        asked = time.time()
        again = await collector.fresh(0, LIMIT_SECONDS)
    assert (again.fast_at or 0) >= asked > (first.fast_at or 0)
    assert again.slow_at == first.slow_at


async def test_many_who_ask_at_once_share_one_reading(node: simulator.Node) -> None:
    async with collecting(node, fast_seconds=600, slow_seconds=600) as collector:
        await collector.first(LIMIT_SECONDS)
        answers: list[Snapshot] = []

        async def ask() -> None:
            answers.append(await collector.fresh(0, LIMIT_SECONDS))

        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(ask)
    assert len({snapshot.fast_at for snapshot in answers}) <= 2


async def test_a_hung_call_leaves_the_last_snapshot_and_is_named(
    node: simulator.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = threading.Event()

    def watch() -> None:
        calling = collector.nvml.calling
        if node.faults and calling and calling[:2] == ("nvmlDeviceGetPowerUsage", 2):
            blocked.set()

    async with collecting(node) as collector:
        before = await collector.first(LIMIT_SECONDS)
        node.on_call = watch
        node.faults = [Hang(kind="hang", gpu=2, seconds=60, call="nvmlDeviceGetPowerUsage")]
        await happened(blocked)
        with monkeypatch.context() as patch:
            patch.setattr(collector_module, "WAITING_SECONDS", 0.0)
            hung = await collector.fresh(0, 0.05)
        assert hung.waiting is not None
        assert (hung.waiting.call, hung.waiting.gpu_index) == ("nvmlDeviceGetPowerUsage", 2)
        assert (hung.state, len(hung.gpus)) == ("ok", 4)
        assert (hung.fast_at or 0) >= (before.fast_at or 0)

        node.faults = ()
        healed = await collector.fresh(0, LIMIT_SECONDS)
        assert (healed.fast_at or 0) > (hung.fast_at or 0)
        assert healed.waiting is None


async def test_a_call_that_hangs_from_the_start_is_named_too(
    node: simulator.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector_module, "WAITING_SECONDS", 0.0)
    node.faults = [Hang(kind="hang", seconds=60, call="nvmlInit*")]
    async with collecting(node) as collector:
        snapshot = await collector.first(0.05)
        assert snapshot.state == "starting"
        assert snapshot.waiting is not None
        assert snapshot.waiting.call == "nvmlInit"


def test_a_hung_call_does_not_keep_the_process_from_exiting() -> None:
    program = """
import anyio, sys
from mcp_gpu.gpu import simulator
from mcp_gpu.gpu.collector import Collector
from mcp_gpu.gpu.errors import NvmlUnavailable
from mcp_gpu.gpu.history import WINDOW, History, Past
from mcp_gpu.gpu.simulator.faults import Hang

async def main():
    node = simulator.Node("one", "h100", gpus=2)
    simulator.install(node)
    collector = Collector(fast_seconds=0.01)
    collector.start()
    await collector.first(20)
    node.faults = [Hang(kind="hang", seconds=600)]
    collector._wanted = float("inf")
    collector._wake.set()
    while collector.nvml.calling is None:
        await anyio.sleep(0)
    collector.stop()
    print(collector.join(0), len(collector.snapshot.gpus))

anyio.run(main)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "False 2\n", "")


async def test_a_lost_gpu_keeps_its_identity_and_loses_its_readings(node: simulator.Node) -> None:
    async with collecting(node) as collector:
        before = (await collector.first(LIMIT_SECONDS)).gpus[1]
        node.faults = [Lost(kind="lost", gpu=1)]
        snapshot = await until(collector, lambda snapshot: snapshot.gpus[1].state == "lost")
        gpu = snapshot.gpus[1]
        assert (gpu.uuid, gpu.serial, gpu.pci_bus_id) == (
            before.uuid,
            before.serial,
            before.pci_bus_id,
        )
        assert gpu.temperature_celsius is None
        assert gpu.unavailable["temperature_celsius"] == "gpu_lost"
        assert [other.state for other in snapshot.gpus] == ["ok", "lost", "ok", "ok"]


async def test_after_a_gpu_was_lost_nvml_is_initialised_anew_and_finds_it_again(
    node: simulator.Node,
) -> None:
    async with collecting(node) as collector:
        await collector.first(LIMIT_SECONDS)
        node.faults = [Lost(kind="lost", gpu=1)]
        lost = await until(collector, lambda s: s.gpus[1].state == "lost" and s.generation >= 2)
        assert lost.gpus[1].uuid is not None
        node.faults = ()
        healed = await until(collector, lambda s: s.gpus[1].state == "ok")
        assert healed.generation > lost.generation


async def test_a_gpu_without_a_handle_is_asked_again(node: simulator.Node) -> None:
    node.faults = [Unreadable(kind="unreadable", gpu=0)]
    async with collecting(node, retry_seconds=600) as collector:
        assert (await collector.first(LIMIT_SECONDS)).gpus[0].state == "unreadable"
        node.faults = ()
        found = await until(collector, lambda snapshot: snapshot.gpus[0].state == "ok")
        assert found.gpus[0].uuid is not None
        assert found.generation == 1


async def test_a_driver_that_comes_later_is_found(node: simulator.Node) -> None:
    node.faults = [WholeNode(kind="driver_not_loaded")]
    async with collecting(node) as collector:
        snapshot = await collector.first(LIMIT_SECONDS)
        assert (snapshot.state, snapshot.gpus) == ("absent", ())
        assert await collector.fresh(0, LIMIT_SECONDS) is collector.snapshot
        node.faults = ()
        await until(collector, lambda snapshot: snapshot.state == "ok")
        assert collector.snapshot.failure is None


async def test_a_driver_that_goes_leaves_the_names_of_its_gpus(node: simulator.Node) -> None:
    async with collecting(node) as collector:
        first = await collector.first(LIMIT_SECONDS)
        node.faults = [WholeNode(kind="driver_mismatch")]
        failing = await until(collector, lambda snapshot: snapshot.state == "failing")
        assert failing.failure is not None
        assert failing.failure.name == "LibRmVersionMismatch"
        assert [gpu.uuid for gpu in failing.gpus] == [gpu.uuid for gpu in first.gpus]
        assert {gpu.state for gpu in failing.gpus} == {"unreadable"}
        assert failing.gpus[0].error == failing.failure.message
        assert failing.gpus[0].temperature_celsius is None
        assert failing.gpus[0].recovery_action is None
        assert failing.gpus[0].unavailable["temperature_celsius"] == "error(18)"
        assert (failing.driver_version, failing.gpu_count, failing.fast_at) == (None, None, None)
        assert failing.gpu_count_expected == 4
        node.faults = ()
        back = await until(collector, lambda snapshot: snapshot.state == "ok")
        assert back.generation == failing.generation + 1


def test_a_gpu_that_is_not_counted_any_more_stays_in_sight() -> None:
    node = simulator.Node("one", "h100", gpus=4)
    with simulator.installed(node):
        reader = Reader(Nvml())
        reader.open()
        reader.read_slow()
        before = reader.read_fast()
        vanished = node.gpus.pop(1)
        reader.close()
        reader.open()
        reader.read_slow()
        after = reader.read_fast()
    assert (after.gpu_count, after.gpu_count_expected) == (3, 4)
    assert [gpu.state for gpu in after.gpus] == ["ok", "ok", "ok", "lost"]
    assert after.gpus[3].uuid == before.gpus[1].uuid == vanished.answer("nvmlDeviceGetUUID")
    assert [gpu.index for gpu in after.gpus] == [0, 1, 2, 3]


def test_who_vanished_is_not_guessed_while_another_gives_no_name() -> None:
    node = simulator.Node("one", "h100", gpus=4)
    with simulator.installed(node):
        reader = Reader(Nvml())
        reader.open()
        reader.close()
        del node.gpus[0]
        node.faults = [Lost(kind="lost", gpu=1)]
        reader.open()
        reader.read_slow()
        after = reader.read_fast()
    assert [gpu.state for gpu in after.gpus] == ["lost", "ok", "ok"]
    assert after.gpus[0].uuid is None
    assert (after.gpu_count, after.gpu_count_expected) == (3, 4)


def test_an_initialisation_that_fails_half_way_is_undone_and_keeps_what_was_known() -> None:
    node = simulator.Node("one", "h100", gpus=2)
    nvml = Nvml()
    calls: list[str] = []

    def unload() -> None:
        call = nvml.calling.call if nvml.calling else ""
        calls.append(call)
        if call == "nvmlDeviceGetCount":
            node.faults = [WholeNode(kind="driver_not_loaded")]

    with simulator.installed(node):
        reader = Reader(nvml)
        reader.open()
        reader.read_slow()
        known = reader.read_fast().gpus
        reader.close()
        node.on_call = unload
        with pytest.raises(NvmlUnavailable) as caught:
            reader.open()
    assert calls[-1] == "nvmlShutdown"
    assert [gpu.uuid for gpu in reader.failed(caught.value).gpus] == [gpu.uuid for gpu in known]


async def test_a_driver_that_goes_right_after_it_came_leaves_the_gpus_it_had(
    node: simulator.Node,
) -> None:
    async with collecting(node) as collector:
        known = await collector.first(LIMIT_SECONDS)

        def unload() -> None:
            calling = collector.nvml.calling
            if calling and calling.call == "nvmlDeviceGetMigMode":
                node.faults = [WholeNode(kind="driver_not_loaded")]

        node.faults = [WholeNode(kind="driver_mismatch")]
        await until(collector, lambda snapshot: snapshot.state == "failing")
        node.on_call, node.faults = unload, ()
        gone = await until(collector, lambda snapshot: snapshot.state == "absent")
        node.on_call = None
    assert [gpu.uuid for gpu in gone.gpus] == [gpu.uuid for gpu in known.gpus]


async def test_a_defect_of_ours_does_not_end_the_thread(
    node: simulator.Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with collecting(node) as collector:
        first = await collector.first(LIMIT_SECONDS)
        failed = threading.Event()

        def fail(*_: object) -> None:
            failed.set()
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr(Reader, "_model", fail)
            await happened(failed)
        await until(collector, lambda snapshot: (snapshot.fast_at or 0) > (first.fast_at or 0))
        assert "ZeroDivisionError" in caplog.text


async def test_who_stops_waiting_leaves_nothing_behind(node: simulator.Node) -> None:
    node.faults = [Hang(kind="hang", seconds=60, call="nvmlInit*")]
    async with collecting(node) as collector:
        for _ in range(20):
            await collector.first(0.001)
        assert collector._waiters == []


# --- the past ---------------------------------------------------------------------------------


async def test_the_past_has_one_snapshot_per_slow_reading(node: simulator.Node) -> None:
    begun = threading.Event()

    def wait() -> None:
        begun.wait(LIMIT_SECONDS)

    node.on_call = wait
    async with collecting(node, fast_seconds=0.01, slow_seconds=0.05) as collector:
        assert collector.past() == Past()
        begun.set()
        first = await collector.first(LIMIT_SECONDS)
        await until(collector, lambda _: len(collector.past().recent) >= 3)
        past = collector.past()
    assert past.first == past.recent[0]
    assert (past.first.generation, past.first.slow_at) == (1, first.slow_at)
    slow = [snapshot.slow_at for snapshot in past.recent]
    assert slow == sorted(set(slow))
    assert all(len(snapshot.vitals) == 4 for snapshot in past.recent)


async def test_a_new_generation_forgets_the_former_one(node: simulator.Node) -> None:
    async with collecting(node) as collector:
        await until(collector, lambda _: len(collector.past().recent) >= 2)
        node.faults = [WholeNode(kind="driver_mismatch")]
        failing = await until(collector, lambda snapshot: snapshot.state == "failing")
        node.faults = ()
        await until(collector, lambda snapshot: snapshot.generation > failing.generation)
        past = collector.past()
    assert past.first is not None
    assert {snapshot.generation for snapshot in past.recent} == {past.first.generation} != {1}


def test_the_past_is_bounded_and_keeps_where_it_began() -> None:
    history = History()
    snapshots = [Snapshot(generation=3, slow_at=float(at)) for at in range(WINDOW + 5)]
    for snapshot in snapshots:
        history.add(snapshot)
    past = history.of(3)
    assert past.first is snapshots[0]
    assert past.recent == tuple(snapshots[-WINDOW:])
    assert history.of(4) == Past()
    history.add(Snapshot(generation=4))
    assert history.of(3) == Past()
    assert history.of(4).recent == (Snapshot(generation=4),)


def test_a_remembered_snapshot_costs_little_more_than_what_has_changed() -> None:
    with simulator.installed(simulator.Node("one", "b200", load=0.5)):
        reader = Reader(Nvml())
        reader.open()
        history = History()

        def remember(count: int) -> None:
            for _ in range(count):
                reader.read_slow()
                history.add(reader.read_fast())
            gc.collect()

        tracemalloc.start()
        remember(2)
        before = tracemalloc.get_traced_memory()[0]
        remember(10)
        each_bytes = (tracemalloc.get_traced_memory()[0] - before) / 10
        tracemalloc.stop()
    assert each_bytes < 100_000


def test_snapshots_do_not_pile_up() -> None:
    with simulator.installed(simulator.Node("one", "h100", gpus=8, load=0.5)):
        tracemalloc.start()
        reader = Reader(Nvml())
        reader.open()

        def some(count: int) -> None:
            for _ in range(count):
                reader.read_slow()
                reader.read_fast()
            gc.collect()

        some(40)
        before = tracemalloc.get_traced_memory()[0]
        some(40)
        grown_bytes = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
    assert grown_bytes < 20_000
