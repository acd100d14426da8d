"""The kernel log by syslog(2): the real call where it is permitted, and rings of every kind."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from mcp_gpu.gpu.xid.model import XidEvent
from mcp_gpu.node import syslog
from mcp_gpu.node.boot import Boot
from mcp_gpu.node.kernel_log import KernelLog
from mcp_gpu.node.kmsg import opener
from mcp_gpu.node.syslog import MAX_SECONDS, MIN_SECONDS, Syslog

LIMIT_SECONDS = 20
STARTED = 1_790_000_000.0
FAULT = "NVRM: Xid (PCI:0000:1b:00): 31, pid=42, name=python3, Ch 00000008"
FALLEN = "NVRM: Xid (PCI:0000:53:00): 79, GPU has fallen off the bus."


def boot(started_at: float = STARTED) -> Boot:
    return Boot("b" * 32, started_at)


class Ring:
    """A kernel's ring: whole lines, of which the oldest go when it is full."""

    def __init__(self, *, size: int = 1 << 20, stamps: bool = True) -> None:
        self.size, self.stamps = size, stamps
        self.asked: list[int] = []
        self._lines: list[bytes] = []

    def write(self, seconds: float, *texts: str, caller: str = "") -> None:
        stamp = f"[{seconds:12.6f}]{caller} " if self.stamps else ""
        self._lines += [f"<4>{stamp}{text}\n".encode("latin-1") for text in texts]

    def clear(self) -> None:
        self._lines.clear()

    def read(self, size: int) -> bytes:
        self.asked.append(size)
        newest, room = [], min(size, self.size)
        for line in reversed(self._lines):
            room -= len(line)
            if room < 0:
                break
            newest.append(line)
        return b"".join(reversed(newest))


class Reader:
    """Asks a ring by hand, and keeps what is told."""

    def __init__(self, ring: Ring, of: Boot | None = None) -> None:
        self.told: list[tuple[str, float]] = []
        self.now = STARTED + 1000
        self.source = Syslog(
            ring.read,
            boot=of or boot(),
            take=lambda text, at: self.told.append((text, at - STARTED)),
            whole=lambda: 1 << 21,
            clock=lambda: self.now,
        )

    async def ask(self) -> list[tuple[str, float]]:
        """What is told that was not told before."""
        before = len(self.told)
        await self.source.ask()
        return self.told[before:]


def refuse() -> int:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), "/dev/kmsg")


@asynccontextmanager
async def reading(log: KernelLog) -> AsyncIterator[None]:
    with anyio.fail_after(LIMIT_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(log.run)
            await log.settled.wait()
            yield
            tasks.cancel_scope.cancel()


# --- which way ------------------------------------------------------------------------------


async def test_where_the_device_does_not_open_the_kernel_is_asked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(syslog, "MIN_SECONDS", 0.01)
    caplog.set_level("INFO")
    ring = Ring()
    ring.write(0, "Linux version 6.18")
    ring.write(60.5, FAULT)
    events: list[XidEvent] = []
    heard = anyio.Event()

    def deliver(event: XidEvent) -> None:
        events.append(event)
        if event.code == 79:
            heard.set()

    log = KernelLog(refuse, boot=boot(), deliver=deliver, call=ring.read)
    async with reading(log):
        assert (log.state.live, log.state.place, log.state.message) == (True, "syslog(2)", "")
        assert log.state.covers_since == STARTED
        ring.write(90, FALLEN, caller="[   T17]")
        await heard.wait()
    assert ring.asked[0] == 0  # to see whether it may be asked, before the thread that reads
    first, second = events
    assert (first.code, first.at, first.pid, first.process) == (31, STARTED + 60.5, 42, "python3")
    assert (second.code, second.at, second.bus_id) == (79, STARTED + 90, "0000:53:00")
    assert (second.source, second.boot_id, second.raw) == ("kernel_log", "b" * 32, FALLEN)
    assert "reading syslog(2), as the device does not open (Operation not permitted)" in caplog.text


async def test_where_the_device_opens_nobody_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "kmsg"
    path.write_bytes(f"3,0,1000000,-;{FAULT}\n".encode())
    ring = Ring()
    events: list[XidEvent] = []
    log = KernelLog(
        lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC),
        boot=boot(),
        deliver=events.append,
        place=str(path),
        call=ring.read,
    )
    async with reading(log):
        assert log.state.place == str(path)
    assert [event.code for event in events] == [31]
    assert ring.asked == []


async def test_another_device_in_its_place_is_not_taken_for_a_silent_log() -> None:
    ring = Ring()
    ring.write(1, FAULT)
    events: list[XidEvent] = []
    opened = opener(Path(os.devnull))
    log = KernelLog(opened, boot=boot(), deliver=events.append)
    async with reading(log):
        assert not log.state.live
        assert "there is no /dev/kmsg here" in log.state.message
    log = KernelLog(opened, boot=boot(), deliver=events.append, call=ring.read)
    async with reading(log):
        assert log.state.place == "syslog(2)"
    assert [event.code for event in events] == [31]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSYS, "neither /dev/kmsg nor syslog(2): Function not implemented"),
        (errno.EPERM, "neither /dev/kmsg nor syslog(2)"),
    ],
)
async def test_where_neither_is_allowed_one_message_says_what_is_missing(
    number: int, said: str
) -> None:
    def forbidden(size: int) -> bytes:
        raise OSError(number, os.strerror(number), "syslog(2)")

    log = KernelLog(refuse, boot=boot(), deliver=print, call=forbidden)
    async with reading(log):
        state = log.state
    assert (state.live, state.place) == (False, "")
    assert state.message.startswith("kernel log not readable: 79, 119 and 120 may be absent: ")
    assert said in state.message


async def test_a_call_that_fails_later_is_tried_again_and_tells_nothing_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(syslog, "MIN_SECONDS", 0.01)
    monkeypatch.setattr("mcp_gpu.node.kernel_log._RETRY_SECONDS", 0.01)
    ring, fails = Ring(), [False]
    ring.write(1, FAULT)
    events: list[XidEvent] = []
    came = anyio.Event()

    def call(size: int) -> bytes:
        if fails[0]:
            raise OSError(errno.EIO, os.strerror(errno.EIO), "syslog(2)")
        return ring.read(size)

    def deliver(event: XidEvent) -> None:
        events.append(event)
        if event.code == 79:
            came.set()

    log = KernelLog(refuse, boot=boot(), deliver=deliver, call=call)
    async with reading(log):
        fails[0] = True
        while log.state.live:
            await anyio.sleep(0.005)
        assert "syslog(2): Input/output error" in log.state.message
        fails[0] = False
        ring.write(2, FALLEN)
        await came.wait()
    assert [event.code for event in events] == [31, 79]


async def test_the_kernel_of_this_machine_is_asked() -> None:
    try:
        newest = syslog.kernel(4096)
    except OSError as error:
        pytest.skip(f"syslog(2): {error}")
    assert len(newest) <= 4096
    assert syslog.kernel(0) == b""
    assert newest in (b"", b"\n") or newest.startswith(b"<")
    log = KernelLog(
        refuse, boot=Boot.of_this_machine(), deliver=lambda event: None, call=syslog.kernel
    )
    async with reading(log):
        state = log.state
    assert (state.live, state.place, state.lost_records) == (True, "syslog(2)", 0)
    assert state.covers_since is not None
    assert state.covers_since <= time.time()


# --- what is new ----------------------------------------------------------------------------


async def test_each_message_is_told_once_however_often_the_ring_is_read() -> None:
    ring = Ring()
    ring.write(1, "a", "b", "b")
    reader = Reader(ring)
    assert await reader.ask() == [("a", 1), ("b", 1), ("b", 1)]
    assert await reader.ask() == []
    ring.write(1, "b")
    ring.write(2, "b", "c")
    assert await reader.ask() == [("b", 1), ("b", 2), ("c", 2)]
    assert await reader.ask() == []
    assert reader.source.lost == 0


async def test_what_is_new_is_found_without_reading_the_whole_ring() -> None:
    ring = Ring()
    ring.write(1, *(f"line {number} of a ring that is nearly full" for number in range(9000)))
    reader = Reader(ring)
    await reader.ask()
    ring.asked.clear()
    ring.write(2, FAULT)
    assert await reader.ask() == [(FAULT, 2)]
    assert ring.asked == [16_384]


async def test_more_news_than_a_short_answer_holds_is_told_whole() -> None:
    ring = Ring()
    ring.write(1, "old")
    reader = Reader(ring)
    await reader.ask()
    texts = [f"{FAULT} {number}" for number in range(1000)]
    ring.write(2, *texts)
    assert await reader.ask() == [(text, 2) for text in texts]
    assert reader.source.lost == 0


async def test_a_ring_that_has_turned_over_but_for_the_last_line_told_has_lost_nothing() -> None:
    ring = Ring(size=20_000)
    ring.write(1, *(f"old {number}" for number in range(400)))
    reader = Reader(ring)
    await reader.ask()
    line = len(b"<4>[    2.000000] new 000\n") + 1
    ring.write(2, *(f"new {number:04}" for number in range((20_000 - 40) // line)))
    told = await reader.ask()
    assert (told[0], reader.source.lost) == (("new 0000", 2), 0)


async def test_a_ring_that_was_overwritten_meanwhile_counts_as_loss() -> None:
    ring = Ring(size=20_000)
    ring.write(1, *(f"old {number}" for number in range(400)))
    reader = Reader(ring)
    await reader.ask()
    ring.write(2, *(f"new {number}" for number in range(900)))
    told = await reader.ask()
    assert reader.source.lost == 1
    assert told[0][0] != "new 0"
    assert told[-1] == ("new 899", 2)
    assert await reader.ask() == []


async def test_a_ring_that_somebody_has_cleared_may_have_lost_some() -> None:
    ring = Ring()
    ring.write(1, "a")
    reader = Reader(ring)
    await reader.ask()
    ring.clear()
    assert await reader.ask() == []
    ring.write(2, "b")
    assert await reader.ask() == [("b", 2)]
    assert reader.source.lost == 1


async def test_a_ring_that_was_empty_at_first_is_followed() -> None:
    ring = Ring()
    reader = Reader(ring)
    assert await reader.ask() == []
    assert reader.source.covers_since == reader.now
    ring.write(2000, "b")
    assert await reader.ask() == [("b", 2000)]
    assert reader.source.lost == 0


async def test_the_end_of_a_line_whose_beginning_did_not_fit_is_passed_over() -> None:
    ring = Ring()
    ring.write(5, FAULT)
    told: list[str] = []
    source = Syslog(
        lambda size: b"Xid (PCI:0000:1b:00): 48, DBE\n" + ring.read(size),
        boot=boot(),
        take=lambda text, at: told.append(text),
    )
    await source.ask()
    assert told == [FAULT]
    assert source.covers_since == STARTED + 5


async def test_control_characters_are_written_as_the_device_writes_them() -> None:
    ring = Ring()
    ring.write(1, "NVRM: Xid (PCI:0000:1b:00): 13, pid=1, name=\x1b[31m\xff, Ch 8")
    ((text, _),) = await Reader(ring).ask()
    assert text == r"NVRM: Xid (PCI:0000:1b:00): 13, pid=1, name=\x1b[31m\xff, Ch 8"


async def test_a_huge_ring_does_not_hold_up_the_event_loop() -> None:
    ring = Ring(size=1 << 21)
    ring.write(1, *(f"{FAULT} {number}" for number in range(20_000)))
    events: list[XidEvent] = []
    log = KernelLog(refuse, boot=boot(), deliver=events.append, call=ring.read)
    rounds = 0
    with anyio.fail_after(LIMIT_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(log.run)
            while not log.settled.is_set():
                rounds += 1
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    assert len(events) > 1000
    assert rounds > 3


# --- time stamps, and what asking costs -----------------------------------------------------


async def test_without_time_stamps_only_what_comes_is_told_and_that_is_said() -> None:
    ring = Ring(stamps=False)
    ring.write(0, FAULT)
    reader = Reader(ring)
    assert await reader.ask() == []
    assert reader.source.covers_since == reader.now
    assert "printk.time=1" in reader.source.message
    reader.now += 5
    ring.write(0, FAULT, FALLEN)
    assert await reader.ask() == [(FAULT, 1005), (FALLEN, 1005)]
    ring.stamps = True
    ring.write(1500, FALLEN)
    await reader.ask()
    assert reader.source.message == ""


async def test_a_clock_that_drifts_is_followed_as_far_as_asking_can_tell() -> None:
    wall = [STARTED + 30 * 86_400.0]
    drifting = Boot("b" * 32, STARTED, clock=lambda: wall[0])
    ring = Ring()
    reader = Reader(ring, drifting)
    reader.now = wall[0]
    await reader.ask()
    stamp = 30 * 86_400.0 - 60  # a minute slow after a month
    for number in range(4):
        wall[0] += 2
        reader.now = wall[0]
        ring.write(stamp + 2 * number, f"line {number}")
        told = await reader.ask()
    # Written within the 2 s before it was read: the time told is right within these.
    assert wall[0] - 3 <= STARTED + told[-1][1] <= wall[0]
    assert drifting.at(round((stamp + 10) * 1e6)) == pytest.approx(wall[0] + 2, abs=3)


async def test_the_dearer_an_answer_the_rarer_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader = Reader(Ring())
    pauses = []
    for cost in (0.0001, 0.015, 5.0):
        times = iter([0.0, cost])
        monkeypatch.setattr(syslog.time, "thread_time", lambda times=times: next(times))
        await reader.ask()
        pauses.append(reader.source.pause_seconds)
    assert pauses == [MIN_SECONDS, pytest.approx(5.0), MAX_SECONDS]
