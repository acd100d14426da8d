"""The kernel log, read through real file descriptors: the device where it may be, FIFOs, pipes."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from mcp_gpu.gpu.xid.model import XidEvent
from mcp_gpu.node.boot import Boot
from mcp_gpu.node.kernel_log import KernelLog
from mcp_gpu.node.kmsg import opener

LIMIT_SECONDS = 20
STARTED = 1_790_000_000.0
FALLEN = (
    "NVRM: Xid (PCI:0000:53:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
)
FAULT = "NVRM: Xid (PCI:0000:1b:00): 31, pid=42, name=python3, Ch 00000008"
DEVICE = Path("/dev/kmsg")


def boot() -> Boot:
    return Boot("b" * 32, STARTED)


def record(sequence: int, seconds: float, message: str) -> bytes:
    return f"3,{sequence},{round(seconds * 1e6)},-,caller=T1;{message}\n".encode()


class Heard:
    """What was delivered, and a way to wait for it."""

    def __init__(self) -> None:
        self.events: list[XidEvent] = []
        self._new = anyio.Event()

    def __call__(self, event: XidEvent) -> None:
        self.events.append(event)
        self._new.set()
        self._new = anyio.Event()

    async def count(self, number: int) -> list[XidEvent]:
        while len(self.events) < number:
            await self._new.wait()
        return self.events


@asynccontextmanager
async def reading(
    opened: Callable[[], int], heard: Heard, of: Boot | None = None
) -> AsyncIterator[KernelLog]:
    """A kernel log that has read all there is."""
    log = KernelLog(opened, boot=of or boot(), deliver=heard)
    with anyio.fail_after(LIMIT_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(log.run)
            await log.settled.wait()
            yield log
            tasks.cancel_scope.cancel()


@pytest.fixture
def pipe() -> Iterator[tuple[Callable[[], int], int]]:
    """A way to open the reading end, and the writing end."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(reader, False)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 20)
    yield lambda: os.dup(reader), writer
    os.close(reader)
    os.close(writer)


Pipe = tuple[Callable[[], int], int]


async def test_what_was_written_before_and_after_is_told_with_its_time(pipe: Pipe) -> None:
    opened, writer = pipe
    os.write(writer, record(0, 0, "Linux version 6.18") + record(1, 60.5, FAULT))
    heard = Heard()
    async with reading(opened, heard) as log:
        assert log.state.live
        assert log.state.covers_since == STARTED
        os.write(writer, record(2, 90, FALLEN) + b" SUBSYSTEM=pci\n DEVICE=+pci:0000:53:00.0\n")
        first, second = await heard.count(2)
    assert (first.code, first.at, first.pid, first.process) == (31, STARTED + 60.5, 42, "python3")
    assert (second.code, second.at, second.bus_id) == (79, STARTED + 90, "0000:53:00")
    assert (second.source, second.boot_id, second.raw) == ("kernel_log", "b" * 32, FALLEN)


async def test_a_ring_that_has_turned_over_covers_from_its_first_record_on(pipe: Pipe) -> None:
    opened, writer = pipe
    os.write(writer, record(900, 7200, "eth0: link up"))
    async with reading(opened, Heard()) as log:
        assert log.state.covers_since == STARTED + 7200


async def test_records_that_were_overwritten_are_counted(pipe: Pipe) -> None:
    opened, writer = pipe
    os.write(writer, record(5, 1, FAULT) + record(6, 2, FAULT) + record(17, 3, FAULT))
    heard = Heard()
    async with reading(opened, heard) as log:
        assert log.state.lost_records == 10
    assert len(heard.events) == 3


@pytest.mark.parametrize("digits", [5000, 400, 21, 20])
async def test_a_record_of_any_figures_ends_nothing(pipe: Pipe, digits: int) -> None:
    opened, writer = pipe
    figures = b"9" * digits
    for head in (b"6,%b,1,-;" % figures, b"6,1,%b,-;" % figures):
        os.write(writer, head + FALLEN.encode() + b"\n" + record(2, 3, FAULT))
        heard = Heard()
        async with reading(opened, heard):
            events = await heard.count(1)
        assert events[-1].code == 31


async def test_a_defect_met_on_one_record_costs_that_record(
    pipe: Pipe, caplog: pytest.LogCaptureFixture
) -> None:
    opened, writer = pipe
    heard = Heard()

    def deliver(event: XidEvent) -> None:
        if event.code == 79:
            raise OverflowError("scripted")
        heard(event)

    log = KernelLog(opened, boot=boot(), deliver=deliver)
    records = [record(number, 1, FALLEN) for number in range(3)]
    os.write(writer, b"".join(records) + record(3, 9, FAULT))
    with anyio.fail_after(LIMIT_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(log.run)
            await heard.count(1)
            tasks.cancel_scope.cancel()
    assert (log.state.live, log.state.lost_records) == (True, 3)
    assert caplog.text.count("a record of the kernel log") == 1


async def test_what_is_no_record_is_passed_over(pipe: Pipe) -> None:
    opened, writer = pipe
    for junk in (b"\n", b";\n", b"3;x\n", b"a,b,c;NVRM: Xid (PCI:1): 3\n", b"\xff\x00;\xfe\n"):
        os.write(writer, junk)
    os.write(writer, b" 3,1,1,-;" + FAULT.encode() + b"\n")
    os.write(writer, b"x" * 300_000)
    os.write(writer, b"\n" + record(9, 1, FAULT))
    heard = Heard()
    async with reading(opened, heard) as log:
        assert [event.at for event in await heard.count(1)] == [STARTED + 1]
        assert log.state.lost_records == 0


async def test_the_two_lines_of_one_fall_off_the_bus_are_one_event(pipe: Pipe) -> None:
    opened, writer = pipe
    companion = "NVRM: GPU 0000:53:00.0: GPU has fallen off the bus."
    other = "NVRM: GPU 0000:54:00.0: GPU has fallen off the bus."
    os.write(writer, record(0, 1, FALLEN) + record(1, 1.25, companion) + record(2, 1.5, other))
    os.write(writer, record(3, 60, companion))
    heard = Heard()
    async with reading(opened, heard):
        told = [(event.bus_id, event.at - STARTED) for event in await heard.count(3)]
    assert told == [("0000:53:00", 1), ("0000:54:00", 1.5), ("0000:53:00", 60)]


async def test_a_full_ring_does_not_hold_up_the_event_loop(pipe: Pipe) -> None:
    opened, writer = pipe
    line = record(1, 1, FAULT)
    os.set_blocking(writer, False)
    count = 0
    try:
        while True:
            os.write(writer, line)
            count += 1
    except BlockingIOError:
        pass
    heard = Heard()
    slices: list[int] = []
    log = KernelLog(opened, boot=boot(), deliver=heard)
    with anyio.fail_after(LIMIT_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(log.run)
            while not log.settled.is_set():
                slices.append(len(heard.events))
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    assert len(heard.events) == count > 4000
    # The loop came round as often as the slices are long, however fast this machine is.
    assert len(slices) > 3


async def test_a_fifo_may_wait_for_its_writer_and_outlive_it(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    os.mkfifo(path)
    heard = Heard()
    async with reading(opener(path), heard) as log:
        for sequence in range(2):
            writer = os.open(path, os.O_WRONLY)
            os.write(writer, record(sequence, 1, FAULT))
            os.close(writer)
            await heard.count(sequence + 1)
        assert log.state.live
    assert len(heard.events) == 2


async def test_a_file_of_records_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    path.write_bytes(record(0, 1, FAULT))
    heard = Heard()
    async with reading(opener(path), heard):
        with path.open("ab") as file:
            file.write(record(1, 2, FALLEN))
        assert [event.code for event in await heard.count(2)] == [31, 79]


async def test_a_log_that_is_opened_again_tells_nothing_twice(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcp_gpu.node.kernel_log._RETRY_SECONDS", 0.01)
    opened, writer = pipe
    first, peer = socket.socketpair()
    peer.send(b"".join(record(number, number, FAULT) for number in range(4)))
    first.send(b"never read: closing the peer resets the connection")
    first.setblocking(False)
    os.write(writer, b"".join(record(number, number, FAULT) for number in (2, 3, 4)))
    ways = iter([first.detach, opened])
    log = KernelLog(lambda: next(ways)(), boot=boot(), deliver=(heard := Heard()))
    with anyio.fail_after(LIMIT_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(log.run)
            await heard.count(4)
            peer.close()
            await heard.count(5)
            tasks.cancel_scope.cancel()
    assert [event.at - STARTED for event in heard.events] == [0, 1, 2, 3, 4]
    assert log.state.lost_records == 0


@pytest.mark.parametrize(
    ("path", "said"),
    [("/nowhere/kmsg", "there is no /dev/kmsg here"), ("/", "Is a directory")],
)
async def test_what_cannot_be_read_is_said_with_what_to_grant(path: str, said: str) -> None:
    async with reading(opener(Path(path)), Heard()) as log:
        assert not log.state.live
        assert "79, 119 and 120 may be absent" in log.state.message
        assert said in log.state.message


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENXIO, "mount it from the node and grant CAP_SYSLOG"),
        (errno.EACCES, f"the mode of /dev/kmsg excludes uid {os.getuid()}"),
        (errno.EIO, "/dev/kmsg: Input/output error"),
    ],
)
async def test_each_refusal_has_its_remedy(number: int, said: str) -> None:
    def refuse() -> int:
        raise OSError(number, os.strerror(number))

    async with reading(refuse, Heard()) as log:
        assert said in log.state.message


async def test_who_may_read_it_and_is_refused_has_a_container_to_blame() -> None:
    try:
        os.close(opener(DEVICE)())
    except OSError as error:
        pytest.skip(f"{DEVICE}: {error}")

    def refuse() -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    async with reading(refuse, Heard()) as log:
        # This machine may be a container with users of its own.
        assert re.search("device cgroup|user namespace's", log.state.message)


async def test_a_reader_that_was_overtaken_goes_on(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other file than the device answers EPIPE to a read."""
    opened, writer = pipe
    os.write(writer, record(7, 1, FAULT) + record(99, 2, FAULT))
    read, overtaken = os.read, [True]

    def first_overtaken(fd: int, size: int) -> bytes:
        if overtaken:
            overtaken.pop()
            raise BrokenPipeError
        return read(fd, size)

    monkeypatch.setattr(os, "read", first_overtaken)
    heard = Heard()
    async with reading(opened, heard) as log:
        assert len(await heard.count(2)) == 2
        assert log.state.lost_records == 91


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("None", "kernel.dmesg_restrict is 1: /dev/kmsg wants"),
        ("kernel", "neither /dev/kmsg nor syslog(2) without"),
    ],
)
def test_without_the_capability_its_rung_is_named(call: str, said: str) -> None:
    if os.getuid() or Path("/proc/sys/kernel/dmesg_restrict").read_text().strip() != "1":
        pytest.skip("needs root and kernel.dmesg_restrict=1")
    script = (
        "import ctypes, anyio\n"
        "from pathlib import Path\n"
        "from mcp_gpu.node.boot import Boot\n"
        "from mcp_gpu.node.kernel_log import KernelLog\n"
        "from mcp_gpu.node.kmsg import opener\n"
        "from mcp_gpu.node.syslog import kernel\n"
        # capset(2) without any capability, whatever the uid.
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "header = (ctypes.c_uint32 * 2)(0x20080522, 0)\n"
        "assert libc.capset(header, (ctypes.c_uint32 * 6)()) == 0\n"
        "async def main():\n"
        "    opened = opener(Path('/dev/kmsg'))\n"
        f"    log = KernelLog(opened, boot=Boot('', 0), deliver=print, call={call})\n"
        "    async with anyio.create_task_group() as tasks:\n"
        "        tasks.start_soon(log.run)\n"
        "        await log.settled.wait()\n"
        "        print(log.state.live, log.state.message)\n"
        "        tasks.cancel_scope.cancel()\n"
        "anyio.run(main)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == (
        "False kernel log not readable: 79, 119 and 120 may be absent: "
        f"{said} CAP_SYSLOG (chart: agent.privileges=kernelLog)\n"
    )


async def test_the_device_of_this_machine_is_read_to_its_end() -> None:
    try:
        os.close(opener(DEVICE)())
    except OSError as error:
        pytest.skip(f"{DEVICE}: {error}")
    async with reading(opener(DEVICE), Heard(), Boot.of_this_machine()) as log:
        state = log.state
    assert state.live
    assert state.message == ""
    assert state.covers_since is not None
    assert state.covers_since <= time.time()


# --- time stamps ----------------------------------------------------------------------------


def test_this_boot_has_an_id_and_began_in_the_past() -> None:
    of_this_machine = Boot.of_this_machine()
    assert len(of_this_machine.boot_id) == 32
    assert of_this_machine.started_at < time.time()


def test_a_clock_that_has_drifted_is_corrected_from_then_on() -> None:
    now = STARTED + 30 * 86_400
    month = Boot("b" * 32, STARTED, clock=lambda: now)
    stamp = 30 * 86_400_000_000 - 40_000_000  # 40 s slow after a month
    before = month.at(stamp - 1)
    for _ in range(3):
        month.heard(stamp)
    assert month.at(stamp) == pytest.approx(now)
    assert month.at(stamp - 1) == before


def test_a_clock_that_runs_ahead_is_corrected_at_once() -> None:
    stamp = 30 * 86_400_000_000
    ahead = Boot("b" * 32, STARTED, clock=lambda: STARTED + 30 * 86_400 - 40)
    ahead.heard(stamp)
    assert ahead.at(stamp) == STARTED + 30 * 86_400 - 40


def test_a_read_that_was_held_up_teaches_no_drift() -> None:
    late = iter([6.0, 0.2, 6.0, 5.0, 0.2, 7.0, 9.0, 8.0])
    days = iter(range(3, 20))
    day, now = 0, 0.0
    held_up = Boot("b" * 32, STARTED, clock=lambda: now)
    told = []
    for seconds in late:
        day = next(days)
        now = STARTED + day * 86_400 + seconds
        held_up.heard(day * 86_400_000_000)
        told.append(held_up.at(day * 86_400_000_000) - STARTED - day * 86_400)
    assert told == pytest.approx([0, 0, 0, 0, 0, 0, 0, 7])


def test_of_many_corrections_the_newest_are_remembered() -> None:
    day, now = 0, 0.0
    drifting = Boot("b" * 32, STARTED, clock=lambda: now)
    for day in range(1, 200):
        now = STARTED + day * 86_400 - 4.0 * day
        drifting.heard(day * 86_400_000_000)
    told = [drifting.at(day * 86_400_000_000) - STARTED - day * 86_400 for day in (1, 199, 190)]
    assert told == [0, -4.0 * 199, -4.0 * 190]


def test_a_record_that_is_old_when_it_is_read_corrects_nothing() -> None:
    stopped = Boot("b" * 32, STARTED, clock=lambda: STARTED + 7200)
    stopped.heard(3_600_000_000)
    assert stopped.at(3_600_000_000) == STARTED + 3600
