"""The processes that NVML lists, as the real binding reads them from simulated boards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import anyio
import pynvml
import pytest

from mcp_gpu.gpu import simulator
from mcp_gpu.gpu.collector import Collector
from mcp_gpu.gpu.nvml import Nvml
from mcp_gpu.gpu.processes import GpuProcess, GpuProcesses, Processes, Utilization, has_wide_rows
from mcp_gpu.gpu.reader import Reader
from mcp_gpu.gpu.simulator import FleetError, load_fleet
from mcp_gpu.gpu.simulator.faults import (
    Fault,
    Hang,
    HiddenProcesses,
    LeakedMemory,
    Lost,
    Refused,
    WholeNode,
)
from mcp_gpu.gpu.simulator.processes import Process

MIB = 1 << 20
LIMIT_SECONDS = 20


def board(*processes: Process, faults: Sequence[Fault] = (), **options: Any) -> simulator.Node:
    """One idle H100 with these processes."""
    settings = {"gpus": 1, "processes": processes, "faults": faults}
    return simulator.Node("one", "h100", **(settings | options))


@contextmanager
def reading(node: simulator.Node) -> Iterator[Reader]:
    with simulator.installed(node):
        reader = Reader(Nvml())
        reader.open()
        reader.read_slow()
        reader.read_fast()
        yield reader
        reader.close()


def read(node: simulator.Node) -> GpuProcesses:
    """The first GPU's."""
    with reading(node) as reader:
        return reader.read_processes().gpus[0]


def opened(node: simulator.Node) -> Any:
    simulator.install(node)
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByIndex(0)


@pytest.fixture(autouse=True)
def _nobody_below_the_binding() -> Iterator[None]:
    yield
    simulator.uninstall()


def test_the_lists_of_one_process_are_drawn_together() -> None:
    found = read(
        board(
            Process(gpu=0, pid=7, memory_mib=300, utilization=40),
            Process(gpu=0, pid=7, memory_mib=300, kind="graphics", utilization=40),
            Process(gpu=0, pid=8, memory_mib=100, kind="mps"),
            Process(gpu=0, pid=9),
        )
    )
    assert found.processes == (
        GpuProcess(7, ("compute", "graphics"), 300 * MIB, None, Utilization(40, 20)),
        GpuProcess(9, ("compute",), None, None, Utilization()),
        GpuProcess(8, ("mps",), 100 * MIB, None, Utilization()),
    )
    assert found.unavailable == {}
    assert found.unaccounted_bytes is None  # for NVML does not tell what 9 holds


def test_memory_that_no_process_holds_is_unaccounted_for() -> None:
    held = Process(gpu=0, pid=7, memory_mib=300)
    assert read(board(held)).unaccounted_bytes == 0
    leaked = LeakedMemory(kind="leaked_memory", gpu=0, mib=4096)
    assert read(board(held, faults=(leaked,))).unaccounted_bytes == 4096 * MIB
    before_r510 = board(held, driver="470.57.02")
    assert read(before_r510).unaccounted_bytes is None


def test_a_gpu_under_load_has_a_process_that_holds_its_memory() -> None:
    with reading(simulator.Node("one", "h100", load=0.7, clock=lambda: 1000.0)) as reader:
        gpus = reader.read_processes().gpus
    assert [gpu.unaccounted_bytes for gpu in gpus] == [0] * 8
    (pids,) = zip(*([p.pid for p in gpu.processes] for gpu in gpus), strict=True)
    assert len(set(pids)) == 8
    assert all(p.utilization and p.utilization.sm_percent for gpu in gpus for p in gpu.processes)


def test_that_no_process_was_busy_is_no_error() -> None:
    handle = opened(board(Process(gpu=0, pid=7)))
    with pytest.raises(pynvml.NVMLError) as refused:
        pynvml.nvmlDeviceGetProcessUtilization(handle, 0)
    assert refused.value.value == pynvml.NVML_ERROR_NOT_FOUND
    (process,) = read(board(Process(gpu=0, pid=7))).processes
    assert process.utilization == Utilization()


def test_samples_of_processes_that_are_in_no_list_are_told_by_pid() -> None:
    lists = Refused(kind="refused", gpu=0, return_code=4, call="nvmlDeviceGet*RunningProcesses_v3")
    found = read(board(Process(gpu=0, pid=7, utilization=3), faults=(lists,)))
    assert (found.processes, found.unlisted, found.complete) == ((), (7,), False)
    reasons = dict.fromkeys(("compute", "graphics", "mps"), "no_permission")
    assert found.unavailable == reasons
    assert found.unaccounted_bytes is None


def test_what_a_driver_does_not_have_is_said_so() -> None:
    found = read(board(Process(gpu=0, pid=7), driver="470.57.02"))
    assert set(found.unavailable.values()) == {"driver_too_old"}
    assert set(found.unavailable) == {"compute", "graphics", "mps"}


def test_a_list_that_grows_while_it_is_read_is_read_again() -> None:
    node = board(Process(gpu=0, pid=1))
    with reading(node) as reader:
        gpu = node.gpus[0]

        def grow() -> None:
            count = len(gpu.work.processes)
            if count < 40:
                # More each time than the binding has left room for: twice as many and five.
                more = range(1, 3 * count + 10)
                gpu._processes = tuple(Process(gpu=0, pid=pid) for pid in more)

        node.on_call = grow
        (found,) = reader.read_processes().gpus
    pids = [process.pid for process in found.processes]
    assert pids == list(range(1, len(pids) + 1))
    assert len(pids) >= 40
    assert found.complete


def test_rows_that_are_wider_than_the_caller_s_are_read_askew_and_not_believed() -> None:
    processes = [Process(gpu=0, pid=pid, memory_mib=100) for pid in (11, 12, 13)]
    handle = opened(board(*processes, driver="535.54.03"))
    rows = pynvml.nvmlDeviceGetComputeRunningProcesses_v3(handle)
    assert [row.pid for row in rows] != [11, 12, 13]
    found = read(board(*processes, driver="535.54.03"))
    assert (found.processes, found.complete) == ((), False)
    assert set(found.unavailable.values()) == {"driver_defect"}
    right = read(board(*processes, driver="535.104.05"))
    assert [process.pid for process in right.processes] == [11, 12, 13]


@pytest.mark.parametrize(
    ("driver", "wide"),
    [
        ("530.41.03", False),
        ("535.42.00", False),
        ("535.43.02", True),
        ("535.54.03", True),
        ("535.86.10", True),
        ("535.98", False),
        ("535.104.05", False),
        ("550.54.14", False),
        ("", False),
        (None, False),
    ],
)
def test_which_drivers_write_wide_rows(driver: str | None, wide: bool) -> None:
    assert has_wide_rows(driver) == wide


CUT = {"mig": {0: ("1g.10gb", "1g.10gb")}}


def test_mig_instances_are_asked_by_their_own_handles() -> None:
    work = Process(gpu=0, pid=7, mig=1, memory_mib=100, utilization=4)
    with reading(board(work, **CUT)) as reader:
        (found,) = reader.read_processes().gpus
        (gpu,) = reader.read_fast().gpus
    (process,) = found.processes
    assert (process.pid, process.mig_uuid) == (7, gpu.mig_devices[1].uuid)
    assert (process.memory_bytes, process.utilization) == (100 * MIB, None)
    assert gpu.mig_devices[1].memory_used_bytes == 100 * MIB
    assert found.unavailable == {"utilization": "mig_active"}
    assert found.unaccounted_bytes is None


def test_the_whole_of_a_cut_gpu_is_told_to_the_privileged_alone() -> None:
    work = Process(gpu=0, pid=7, mig=1, memory_mib=100)
    unseen = Refused(
        kind="refused", gpu=0, return_code=4, call="nvmlDeviceGetMigDeviceHandleByIndex"
    )
    found = read(board(work, faults=(unseen,), **CUT))
    assert (found.processes, found.complete) == ((), False)
    assert found.unavailable["instances"] == "no_permission"
    assert found.unavailable["compute"] == "no_permission"


def test_hidden_processes_leave_an_empty_list_without_a_word() -> None:
    hidden = HiddenProcesses(kind="hidden_processes")
    found = read(board(Process(gpu=0, pid=7, memory_mib=100, utilization=4), faults=(hidden,)))
    assert (found.processes, found.unlisted, found.unavailable) == ((), (), {})
    assert found.unaccounted_bytes == 100 * MIB


def test_a_lost_gpu_hides_no_other_s_processes() -> None:
    node = board(Process(gpu=1, pid=7), gpus=2)
    with reading(node) as reader:
        node.faults = (Lost(kind="lost", gpu=0),)
        lost, well = reader.read_processes().gpus
    assert set(lost.unavailable.values()) == {"gpu_lost"}
    assert [process.pid for process in well.processes] == [7]


# --- the thread that reads them --------------------------------------------------------------


class Spy(Nvml):
    """Remembers which functions were called."""

    def __init__(self) -> None:
        super().__init__()
        self.called: set[str] = set()

    def call(self, call: str, gpu_index: int | None, *args: Any) -> Any:
        self.called.add(call)
        return super().call(call, gpu_index, *args)


@contextmanager
def collecting(node: simulator.Node, nvml: Nvml) -> Iterator[Collector]:
    with simulator.installed(node):
        collector = Collector(nvml, fast_seconds=3600, slow_seconds=3600)
        collector.start()
        try:
            yield collector
        finally:
            node.faults = ()
            collector.stop()
            assert collector.join(LIMIT_SECONDS)


async def asked(collector: Collector, max_age_seconds: float = 0.0) -> Processes | None:
    with anyio.fail_after(LIMIT_SECONDS):
        return await collector.processes(max_age_seconds, LIMIT_SECONDS)


async def test_processes_are_read_for_those_alone_who_ask() -> None:
    nvml = Spy()
    with collecting(board(Process(gpu=0, pid=7)), nvml) as collector:
        await collector.first(LIMIT_SECONDS)
        await collector.fresh(0.0, LIMIT_SECONDS)
        assert not any("Process" in call for call in nvml.called)
        found = await asked(collector)
        assert found is not None
        assert [process.pid for process in found.gpus[0].processes] == [7]
        assert await asked(collector, LIMIT_SECONDS) is found
        assert await asked(collector) is not found


async def test_while_a_call_hangs_the_last_ones_are_told() -> None:
    node = board(Process(gpu=0, pid=7))
    with collecting(node, Nvml()) as collector:
        before = await asked(collector)
        assert before is not None
        node.faults = (Hang(kind="hang", seconds=3600, call="*RunningProcesses_v3"),)
        with anyio.fail_after(LIMIT_SECONDS):
            assert await collector.processes(0.0, 0.05) is before


async def test_without_a_driver_there_are_no_processes_any_more() -> None:
    node = board(Process(gpu=0, pid=7))
    with collecting(node, Nvml()) as collector:
        assert await asked(collector) is not None
        node.faults = (WholeNode(kind="driver_not_loaded"),)
        assert await asked(collector) is None


async def test_nobody_waits_where_there_is_no_driver() -> None:
    node = board(faults=(WholeNode(kind="driver_not_loaded"),))
    with collecting(node, Nvml()) as collector:
        assert await asked(collector) is None


# --- the fleet file --------------------------------------------------------------------------

FLEET = """
[[nodes]]
name = "a"
profile = "h100"
gpus = 2
load = 0.0
[[nodes.mig]]
gpu = 1
profile = "1g.10gb"
[[nodes.processes]]
gpu = {gpu}
pid = 4242
kind = "mps"
memory_mib = 100
name = "trainer"
utilization = 30
pod_uid = "0b9b7c34-3a5e-4f0e-8a51-0ef1c5d8a001"
{mig}
"""


def test_a_fleet_file_names_processes(tmp_path: Any) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET.format(gpu=0, mig=""))
    node = load_fleet(path).node("a")
    (process,) = node.processes
    assert (process.name, str(process.pod_uid)[:8]) == ("trainer", "0b9b7c34")
    (told,) = read(node).processes
    assert (told.pid, told.kinds, told.memory_bytes) == (4242, ("mps",), 100 * MIB)


@pytest.mark.parametrize(
    ("gpu", "mig", "complaint"),
    [
        (2, "", "nodes[0].processes[0].gpu: a has 2 GPUs"),
        (0, "mig = 0", "nodes[0].processes[0].mig: GPU 0 has 0 MIG devices"),
        (1, "", "nodes[0].processes[0].mig: GPU 1 has 1 MIG devices"),
        (1, "mig = 1", "nodes[0].processes[0].mig: GPU 1 has 1 MIG devices"),
        (0, 'container_id = "x"', "nodes[0].processes[0].container_id"),
    ],
)
def test_a_process_must_be_on_what_there_is(
    tmp_path: Any, gpu: int, mig: str, complaint: str
) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET.format(gpu=gpu, mig=mig))
    with pytest.raises(FleetError) as refused:
        load_fleet(path)
    assert complaint in str(refused.value)
