"""What the recorder keeps: in bounds, without invented readings, over restarts and set clocks."""

from __future__ import annotations

import errno
import logging
import os
import threading
import tracemalloc
from collections.abc import Iterator
from math import isnan
from pathlib import Path
from typing import Any

import pytest

from mcp_gpu.gpu import simulator
from mcp_gpu.gpu.collector import Collector
from mcp_gpu.gpu.errors import Code
from mcp_gpu.gpu.health.assess import assess
from mcp_gpu.gpu.health.model import GpuVerdict
from mcp_gpu.gpu.history import Past
from mcp_gpu.gpu.model import Failure, Gpu, Snapshot
from mcp_gpu.gpu.recorder import recorder as module
from mcp_gpu.gpu.recorder.events import MOST, Event, EventLog
from mcp_gpu.gpu.recorder.figures import buckets, summary
from mcp_gpu.gpu.recorder.file import File
from mcp_gpu.gpu.recorder.metrics import METRICS
from mcp_gpu.gpu.recorder.recorder import MAX_HOURS, SAVE_SECONDS, Recorder
from mcp_gpu.gpu.recorder.ring import Cells
from mcp_gpu.gpu.recorder.shifts import shifts
from mcp_gpu.gpu.recorder.tenants import MOST as MOST_TENANTS
from mcp_gpu.gpu.recorder.tenants import Tenant, Tenants
from support.readings import T0, board, changed

HOUR = 3600.0


class Node:
    """Snapshots of a board one after another, taken as the thread takes them."""

    def __init__(self, recorder: Recorder, snapshot: Snapshot | None = None) -> None:
        self.recorder = recorder
        self.now = snapshot or board("h100")
        self.at = T0
        self.steady = 100.0

    def pass_by(self, seconds: float, *, clock: float | None = None) -> None:
        """Time passes; `clock` by as much as the node's clock shows, where that is otherwise."""
        self.steady += seconds
        self.at += seconds if clock is None else clock

    def read(self, gpu: int | None = 0, *, slow: bool = False, **values: Any) -> None:
        self.now = changed(self.now, gpu, **values)
        times = {"fast_at": self.at} | ({"slow_at": self.at} if slow else {})
        self.now = self.now.model_copy(update=times)
        self.recorder.take(self.now, self.steady)

    def uuid(self, gpu: int = 0) -> str:
        found = self.now.gpus[gpu].uuid
        assert found is not None
        return found

    def cells(self, metric: str, seconds: float, gpu: int = 0) -> Cells:
        return self.recorder.series(self.uuid(gpu), metric, self.at - seconds, self.at)


def told(cells: Cells) -> list[float | None]:
    return [None if isnan(value) else round(value, 3) for value in cells.mean]


def texts(recorder: Recorder) -> list[str]:
    return [event.text for event in recorder.events(0, 2 * T0)]


def test_a_day_of_eight_gpus_takes_less_than_ten_mebibytes() -> None:
    tracemalloc.start()
    try:
        recorder = Recorder(hours=24)
        node = Node(recorder, board("h100", gpus=8))
        for number in range(24 * 6 + 1):  # all is there from the first on
            node.read(number % 8, slow=True, power_draw_watts=100.0 + number)
            node.pass_by(600)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 10 << 20
    day = summary(node.cells("power_draw_watts", 24 * HOUR + 600))
    assert day is not None
    assert (day.low, day.high) == (100, 244)


def test_as_long_as_may_be_asked_for_eight_gpus_take_less_than_that_too() -> None:
    tracemalloc.start()
    try:
        recorder = Recorder(hours=MAX_HOURS)
        Node(recorder, board("h100", gpus=8)).read()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 10 << 20


def test_cells_are_finer_the_younger_they_are_and_no_spike_is_lost() -> None:
    node = Node(Recorder())
    for number in range(2 * 1800):
        node.read(temperature_celsius=95 if number == 7 else 60)
        node.pass_by(2)
    steps = [node.cells("temperature_celsius", back).step for back in (600, HOUR, 2 * HOUR)]
    assert steps == [2, 10, 60]
    spike = node.cells("temperature_celsius", 2 * HOUR)
    assert (max(spike.high), min(spike.low)) == (95, 60)
    assert 60 < max(spike.mean) < 65
    drawn = buckets(spike, 10, counted=False)
    assert len(drawn.high) <= 10
    assert max(value or 0 for value in drawn.high) == 95


def test_what_is_not_read_is_a_gap_and_never_nought() -> None:
    node = Node(Recorder())
    node.read(temperature_celsius=50)
    node.pass_by(2)
    node.read(temperature_celsius=None)
    node.pass_by(2)
    node.read(temperature_celsius=52)
    node.pass_by(20)  # a call that hung
    node.read(temperature_celsius=53)
    assert told(node.cells("temperature_celsius", 24)) == [50, None, 52, *[None] * 9, 53]


def test_a_reading_is_true_until_the_next_where_they_come_slower_than_cells() -> None:
    node = Node(Recorder(fast_seconds=6))
    for value in (1.0, 2.0, 3.0):
        node.read(power_draw_watts=value)
        node.pass_by(6)
    assert told(node.cells("power_draw_watts", 18))[:7] == [1, 1, 1, 2, 2, 2, 3]


def test_counters_are_told_by_what_they_grew() -> None:
    node = Node(Recorder())
    seconds, errors = 0.0, 100
    for number in range(10):
        node.read(slow=True, slowed_by_hw_thermal_seconds=seconds, pcie_replays=errors)
        node.pass_by(30)
        seconds, errors = seconds + 15, errors + (40 if number == 4 else 0)
    replays = node.cells("pcie_replays", 300)
    found = summary(replays)
    assert found is not None
    assert (found.total, found.high) == (40, 40)
    # Nobody knows what came before the first reading.
    slowed = summary(node.cells("slowed_by_hw_thermal_percent", 300))
    assert slowed is not None
    assert (slowed.low, slowed.high) == (50, 50)
    assert 0 < slowed.unknown < 0.15
    assert summary(node.cells("ecc_uncorrected", 300)) is not None


def test_a_counter_that_was_set_back_grew_by_nobody_knows_what() -> None:
    node = Node(Recorder())
    for replays in (500, 3, 4):
        node.read(slow=True, pcie_replays=replays)
        node.pass_by(30)
    found = summary(node.cells("pcie_replays", 120))
    assert found is not None
    assert found.total == 1


def test_a_driver_that_may_have_been_loaded_anew_begins_its_counters_anew() -> None:
    node = Node(Recorder())
    node.read(slow=True, ecc_dram_uncorrected=0, persistence_mode=False)
    node.pass_by(30)
    node.now = node.now.model_copy(update={"generation": node.now.generation + 1})
    node.read(slow=True, ecc_dram_uncorrected=7)
    assert summary(node.cells("ecc_uncorrected", 60)) is None
    node.pass_by(30)
    node.read(slow=True, ecc_dram_uncorrected=9)
    found = summary(node.cells("ecc_uncorrected", 60))
    assert found is not None
    assert found.total == 2


def test_counters_that_surely_ran_on_are_compared_over_a_new_initialisation() -> None:
    node = Node(Recorder())
    node.read(slow=True, pcie_replays=10, persistence_mode=True)
    node.pass_by(30)
    node.now = node.now.model_copy(update={"generation": node.now.generation + 1})
    node.read(slow=True, pcie_replays=15)
    found = summary(node.cells("pcie_replays", 60))
    assert found is not None
    assert found.total == 5


def test_a_gpu_is_known_by_its_uuid_wherever_it_is() -> None:
    node = Node(Recorder(), board("h100", gpus=2))
    first = node.uuid(0)
    node.read(0, temperature_celsius=40)
    node.read(1, temperature_celsius=70)
    node.pass_by(2)
    gpus = tuple(
        gpu.model_copy(update={"index": index}) for index, gpu in enumerate(node.now.gpus[::-1])
    )
    node.now = node.now.model_copy(update={"gpus": gpus, "vitals": node.now.vitals[::-1]})
    node.read()
    assert told(node.recorder.series(first, "temperature_celsius", T0, node.at)) == [40, 40]
    assert [each.gpu_index for each in node.recorder.gpus() if each.uuid == first] == [1]


@pytest.mark.parametrize("by", [-7200.0, 7200.0])
def test_a_clock_that_is_set_moves_no_reading(by: float) -> None:
    node = Node(Recorder())
    for number in range(5):
        node.read(temperature_celsius=50 + number)
        node.pass_by(2, clock=2 + by if number == 2 else None)
    node.at -= 2
    assert told(node.cells("temperature_celsius", 8)) == [50, 51, 52, 53, 54]
    way = "back" if by < 0 else "forward"
    (event,) = node.recorder.events(0, 2 * T0)
    assert (event.at, event.text) == (node.at - 2, f"the clock was set {way} by 7200 s")


def test_a_suspended_machine_leaves_a_gap() -> None:
    node = Node(Recorder())
    node.read(temperature_celsius=50)
    node.pass_by(600)  # both clocks run on
    node.read(temperature_celsius=51)
    cells = told(node.cells("temperature_celsius", 600))
    assert (cells[0], cells[-1], set(cells[1:-1])) == (50, 51, {None})
    assert texts(node.recorder) == []


def test_what_becomes_otherwise_is_an_event() -> None:
    recorder = Recorder(judge=lambda snapshot: assess(snapshot, Past(), clock=lambda: T0).gpus)
    node = Node(recorder)
    node.read(slow=True)
    node.pass_by(2)
    node.read(throttle_reasons=("hw_thermal_slowdown",))
    node.pass_by(2)
    node.read(throttle_reasons=())
    healthy = node.now
    node.pass_by(30)
    node.read(slow=True, recovery_action="gpu_reset")
    node.pass_by(2)
    uuid = node.uuid(3)
    lost = Gpu(index=3, state="lost", error="fallen off the bus", uuid=uuid)
    node.now = node.now.model_copy(update={"gpus": (*node.now.gpus[:3], lost)})
    node.read()
    node.pass_by(2)
    failure = Failure(code=Code.UNKNOWN, name="Unknown", message="NVML is broken")
    node.now = node.now.model_copy(update={"state": "failing", "failure": failure, "gpus": ()})
    recorder.take(node.now, node.steady)
    node.pass_by(2)
    update = {"state": "ok", "failure": None, "gpus": healthy.gpus, "driver_version": "595.1"}
    node.now = node.now.model_copy(update=update)
    node.read()
    told = [(event.kind, event.gpu_index, event.text) for event in recorder.events(0, 2 * T0)]
    driver = healthy.driver_version
    assert told == [
        ("slowed", 0, "slowed by hw_thermal_slowdown"),
        ("slowed", 0, "no longer slowed"),
        ("action", 0, "the driver asks for gpu_reset"),
        ("verdict", 0, "failed (recovery_action), healthy before"),
        ("gpu", 3, "lost: fallen off the bus"),
        ("nvml", None, "NVML failing: NVML is broken"),
        ("nvml", None, "NVML answers again"),
        ("driver", None, f"driver 595.1, {driver} before"),
    ]


def test_a_storm_of_events_is_one_event_and_pushes_no_other_out() -> None:
    log = EventLog()
    log.add(Event(0.0, "gpu", "lost", "GPU-1", 1))
    for number in range(2000):
        log.add(Event(number * 2.0, "slowed", "slowed by heat", "GPU-0", 0))
        log.add(Event(number * 2.0, "slowed", "no longer slowed", "GPU-0", 0))
    found = list(log.between(0, 1e9))
    assert [event.times for event in found] == [1, 2000, 2000]
    for number in range(2 * MOST):
        log.add(Event(1e6 + number, "verdict", f"{number}", "GPU-0", 0))
    found = list(log.between(0, 1e9))
    assert len(found) == MOST
    assert found[0].kind == "gpu"


def test_a_restart_with_a_folder_keeps_the_past(tmp_path: Path) -> None:
    file = File(tmp_path / "deep" / "folder")
    node = Node(Recorder("n", file=file))
    for number in range(30):
        node.read(temperature_celsius=50 + number % 3, slow=True, pcie_replays=number)
        node.pass_by(2)
    node.read(throttle_reasons=("hw_slowdown",))
    node.recorder.save()
    before = {name: told(node.cells(name, 60)) for name in METRICS}
    past = node.recorder
    node.recorder = Recorder("n", file=file, hours=2)  # of another size, too
    node.recorder.load()
    assert {name: told(node.cells(name, 60)) for name in METRICS} == before
    assert node.recorder.events(0, 2 * T0) == past.events(0, 2 * T0)
    assert node.recorder.gpus() == past.gpus()
    node.pass_by(10)
    node.steady = 5.0  # the machine was started anew
    node.read(temperature_celsius=40)
    assert told(node.cells("temperature_celsius", 12))[-6:] == [52, None, None, None, None, 40]
    assert sorted(path.name for path in file.folder.iterdir()) == ["timeline"]


def tenant(pod: str = "w0", uid: str | None = None, device: str = "GPU-1") -> Tenant:
    return Tenant("train", pod, uid, "main", device, device, 0, "", shared=False)


def test_who_held_which_gpu_is_one_stretch_for_each_and_bounded() -> None:
    tenants = Tenants()
    for at in (100.0, 110.0, 120.0):
        tenants.note([tenant(uid=None if at == 100 else "u"), tenant(device="GPU-2")], at)
    tenants.note([tenant(uid="another")], 130.0)
    tenants.note([tenant(device="GPU-2")], 120.0 + 3600)  # of the name, and after a gap
    spans = [
        (each.device, each.pod_uid, each.since, each.until) for each in tenants.between(0, HOUR * 9)
    ]
    assert spans == [
        ("GPU-1", "u", 100, 120),
        ("GPU-2", None, 100, 120),
        ("GPU-1", "another", 130, 130),
        ("GPU-2", None, 3720, 3720),
    ]
    assert [each.since for each in tenants.between(125, 140)] == [130]
    for number in range(2 * MOST_TENANTS):
        tenants.note([tenant(f"p{number}")], 4000.0 + number)
    kept = list(tenants.between(0, HOUR * 9))
    assert len(kept) == MOST_TENANTS
    assert kept[-1].pod == f"p{2 * MOST_TENANTS - 1}"


def test_who_held_which_gpu_survives_a_restart(tmp_path: Path) -> None:
    file = File(tmp_path)
    recorder = Recorder("n", file=file, clock=lambda: T0)
    recorder.start()
    recorder.held((tenant(uid="u"),))
    recorder.feed(board("h100").model_copy(update={"fast_at": T0}))
    recorder.stop()
    assert recorder.join(20)
    again = Recorder("n", file=file, clock=lambda: T0 + 60)
    again.load()
    (found,) = again.tenants(T0 - 10, T0 + 10)
    assert (found.pod, found.pod_uid, found.since, found.until) == ("w0", "u", T0, T0)
    assert again.tenants(T0 + 20, T0 + 60) == ()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda data: b"#!/bin/sh\n", "not a timeline of this version"),
        (lambda data: data.replace(b"timeline 1 ", b"timeline 2 ", 1), "of this version"),
        (lambda data: data[: len(data) // 2], "cut short"),
        (lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:], "damaged"),
        (lambda data: data + b"x", "too long"),
    ],
)
def test_a_damaged_file_is_put_aside_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any, why: str
) -> None:
    node = Node(Recorder("n", file=File(tmp_path)))
    node.read()
    node.recorder.save()
    kept = tmp_path / "timeline"
    kept.write_bytes(damage(kept.read_bytes()))
    bad = kept.read_bytes()
    again = Recorder("n", file=File(tmp_path))
    again.load()
    assert again.gpus() == ()
    assert why in caplog.text
    assert (tmp_path / "timeline.unusable").read_bytes() == bad
    assert not kept.exists()


LATE = 1e300


@pytest.mark.parametrize(
    "changed_to",
    [
        {"last": LATE},
        {"ahead": -LATE},
        {"last": float("nan")},
        {"gpus": {"index": float("inf")}},
        {"gpus": {"read_at": LATE}},
        {"gpus": {"rings": [[10**12, 330], [None, 390], [None, 1442]]}},
        {"events": {"gpu_index": float("inf")}},
        {"events": {"at": LATE}},
        {"tenants": {"until": LATE}},
        {"events": {"last_at": float("nan")}},
    ],
)
def test_numbers_that_nobody_can_have_written_are_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changed_to: dict[str, Any]
) -> None:
    node = Node(Recorder("n", file=File(tmp_path)))
    node.read(throttle_reasons=())
    node.pass_by(2)
    node.read(throttle_reasons=("hw_slowdown",))
    node.recorder._tenants.note([tenant()], T0)
    node.recorder.save()
    found = File(tmp_path).load()
    assert found is not None
    described, arrays = found
    for name, value in changed_to.items():
        if isinstance(value, dict):
            described[name][0] |= value
        else:
            described[name] = value
    File(tmp_path).save(described, [bytes(each) for each in arrays])
    again = Recorder("n", file=File(tmp_path))
    again.load()
    assert again.gpus() == ()
    assert "damaged" in caplog.text
    assert (tmp_path / "timeline.unusable").exists()


def test_a_file_is_read_without_copying_what_is_left_for_each_array(tmp_path: Path) -> None:
    arrays = [bytes([number % 256]) * 1024 for number in range(4096)]
    file = File(tmp_path)
    file.save({}, arrays)
    found = file.load()
    assert found is not None
    assert [bytes(each) for each in found[1]] == arrays
    assert len({id(each.obj) for each in found[1]}) == 1, "each lies in what was unpacked"


@pytest.mark.parametrize("other", [{"node": "m"}, {"simulated": True}])
def test_a_file_about_others_is_put_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, other: dict[str, Any]
) -> None:
    node = Node(Recorder("n", file=File(tmp_path)))
    node.read()
    node.recorder.save()
    again = Recorder(**({"node": "n"} | other), file=File(tmp_path))
    again.load()
    assert again.gpus() == ()
    assert f"of another {next(iter(other))}" in caplog.text


def test_a_full_disk_is_told_once_and_what_was_there_still_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    node = Node(Recorder("n", file=File(tmp_path)))
    node.read()
    node.recorder.save()
    kept = (tmp_path / "timeline").read_bytes()

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        for _ in range(3):
            node.recorder.save()
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "No space left on device" in node.recorder.unsaved
    assert "No space left on device" in caplog.text
    assert (tmp_path / "timeline").read_bytes() == kept
    assert [path.name for path in tmp_path.iterdir()] == ["timeline"]
    node.recorder.save()
    assert "saved again" in caplog.text
    assert node.recorder.unsaved == ""


def test_what_a_killed_process_left_half_written_is_taken_away(tmp_path: Path) -> None:
    old, young = tmp_path / ".timeline-old", tmp_path / ".timeline-young"
    for left in (old, young):
        left.write_bytes(b"half")
    os.utime(old, (0, 0))
    Recorder("n", file=File(tmp_path)).load()
    assert [path.name for path in tmp_path.iterdir()] == [young.name]


@pytest.fixture
def node() -> Iterator[simulator.Node]:
    with simulator.installed(simulator.Node("one", "h100", gpus=2, load=0.5)) as node:
        yield node


def test_the_collector_feeds_it_and_it_saves_when_it_is_stopped(
    node: simulator.Node, tmp_path: Path
) -> None:
    recorder = Recorder("one", simulated=True, file=File(tmp_path))
    fed = threading.Event()

    def feed(snapshot: Snapshot) -> None:
        recorder.feed(snapshot)
        fed.set()
        raise RuntimeError("a listener that fails is no reason not to read GPUs")

    collector = Collector(told=feed)
    recorder.start()
    collector.start()
    assert fed.wait(20)
    collector.stop()
    assert collector.join(20)
    recorder.stop()
    assert recorder.join(20)
    assert SAVE_SECONDS > 20, "else it was not the end that saved"
    again = Recorder("one", simulated=True, file=File(tmp_path))
    again.load()
    assert [gpu.gpu_index for gpu in again.gpus()] == [0, 1]


def test_a_disk_that_hangs_stops_no_recording_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a FIFO in the file's place, which nobody writes."""
    monkeypatch.setattr(module, "LOAD_SECONDS", 0.05)
    monkeypatch.setattr(module, "HELD_SECONDS", 0.0)
    os.mkfifo(tmp_path / "timeline")
    judged = threading.Event()

    def judge(snapshot: Snapshot) -> tuple[GpuVerdict, ...]:
        judged.set()
        return ()

    recorder = Recorder("n", file=File(tmp_path), judge=judge)
    recorder.start()
    recorder.feed(board("h100").model_copy(update={"fast_at": T0, "slow_at": T0}))
    assert judged.wait(20)
    assert len(recorder.gpus()) == 4
    assert "its disk has not answered for" in recorder.unsaved
    recorder.stop()
    assert not recorder.join(0.05)
    (tmp_path / "timeline").open("w").close()  # lets the disk go on
    assert recorder.join(20)
    assert recorder.unsaved == ""
    again = Recorder("n", file=File(tmp_path))
    again.load()
    assert len(again.gpus()) == 4
    assert (tmp_path / "timeline.unusable").exists(), "what came too late is not lost"


def test_shifts_are_found_where_they_are() -> None:
    noise = [0.3, -0.2, 0.1, -0.4, 0.2, 0.0, -0.1]
    values = [
        level + noise[n % 7] for n, level in enumerate([60.0] * 50 + [84.0] * 40 + [70.0] * 30)
    ]
    found = shifts(values, 5.0)
    assert [(each.place, round(each.before), round(each.after)) for each in found] == [
        (50, 60, 84),
        (90, 84, 70),
    ]
    assert shifts(values, 30.0) == []
    assert shifts([60.0] * 200, 5.0) == []
    assert shifts([60.0, 90.0], 5.0) == []
    spike = [60.0] * 100 + [90.0] + [60.0] * 100
    assert shifts(spike, 5.0) == [], "a spike is no shift"


def test_noise_has_no_shifts() -> None:
    state, values = 1, []
    for _ in range(400):
        state = state * 1_103_515_245 + 12_345 & 0x7FFFFFFF
        values.append(50.0 + state / 0x7FFFFFFF * 40)
    assert shifts(values, 5.0) == []
