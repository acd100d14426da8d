"""The kernel log, /dev/kmsg: every Xid of this boot that the kernel's ring still holds, then live.

One record is `priority,sequence,microseconds,flags;message`, with further lines that begin with a
blank (kernel documentation, ABI/testing/dev-kmsg). The device gives one per read, EAGAIN at the
end and EPIPE where the ring has overtaken the reader. A FIFO, a pipe or a file of such records is
read alike.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import anyio

from mcp_gpu.gpu.xid.model import SourceState, XidEvent
from mcp_gpu.node.boot import Boot
from mcp_gpu.node.lines import XidLines

log = logging.getLogger(__name__)

SLICE_SECONDS: Final = 0.005
"""Longest that records are read without letting the event loop go on: a full ring is 20,000."""

_READ_BYTES: Final = 16_384
"""The device refuses to give a record to a buffer that is too small; the longest are 8 KiB."""

_LINE_BYTES: Final = 65_536
"""What has no line end by then is no record."""

_DIGITS: Final = 20
"""Of a sequence number or a time stamp: those of 64 bits have no more."""

_POLL_SECONDS: Final = 1.0
"""How often a file, or a FIFO that nobody writes to, is looked at."""

_RETRY_SECONDS: Final = 5.0
_RETRY_MAX_SECONDS: Final = 300.0

_CAP_SYSLOG: Final = 34

_MISSING: Final = "79, 119 and 120 may be absent"


class KernelLog:
    """Follows a kernel log for ever.

    Args:
        opened: opens it, without blocking, and returns the file descriptor.
        boot: of the kernel that writes it.
        deliver: takes each Xid, in the event loop.
        place: what it is called in messages.
    """

    def __init__(
        self,
        opened: Callable[[], int],
        *,
        boot: Boot,
        deliver: Callable[[XidEvent], None],
        place: str = "/dev/kmsg",
    ) -> None:
        self._opened, self._boot, self._deliver, self._place = opened, boot, deliver, place
        self._lines = XidLines("kernel_log")
        self._live = False
        self._message = "kernel log not opened yet"
        self._covers_since: float | None = None
        self._lost = 0
        self._failed = False
        """Whether a defect of ours has been logged: a full ring has 20,000 records."""
        self._tail = b""
        self._next: int | None = None
        """The sequence number after the last record's."""
        self._seen = 0
        """Records before this one were delivered before the log was opened again."""
        self._just_written = False
        """Whether the next record is what woke us."""
        self.settled = anyio.Event()
        """Set once all that was there has been read, or nothing can be."""

    @property
    def state(self) -> SourceState:
        """What can be seen now."""
        return SourceState(
            source="kernel_log",
            live=self._live,
            message=self._message,
            covers_since=self._covers_since,
            lost_records=self._lost,
        )

    async def run(self) -> None:
        """Read until cancelled; open again what cannot be read."""
        pause = _RETRY_SECONDS
        while True:
            try:
                fd = self._opened()
                try:
                    self._become(True, "")
                    await self._follow(fd)
                finally:
                    os.close(fd)
            except OSError as error:
                if self._live:
                    pause = _RETRY_SECONDS
                self._become(False, _why(error, self._place))
                self.settled.set()
            await anyio.sleep(pause)
            pause = min(2 * pause, _RETRY_MAX_SECONDS)

    def _become(self, live: bool, message: str) -> None:
        if message != self._message:
            log.info("%s", message or f"kernel log: reading {self._place}")
        self._live, self._message = live, message

    async def _follow(self, fd: int) -> None:
        """Raises: OSError: it cannot be read any more."""
        device = stat.S_ISCHR(os.fstat(fd).st_mode)
        self._tail, self._seen, self._just_written = b"", self._next or 0, False
        while True:
            at_end = self._read(fd, time.monotonic() + SLICE_SECONDS)
            if at_end is None:
                await anyio.lowlevel.checkpoint()
                continue
            if self._covers_since is None:
                self._covers_since = time.time()
            self.settled.set()
            if at_end:
                await anyio.sleep(_POLL_SECONDS)
            else:
                await anyio.wait_readable(fd)
                self._just_written = device

    def _read(self, fd: int, until: float) -> bool | None:
        """Read what there is. None: there is more; else whether it ended as a file does."""
        while time.monotonic() < until:
            try:
                data = os.read(fd, _READ_BYTES)
            except BlockingIOError:
                return False
            except BrokenPipeError:
                continue  # What was overwritten shows in the next record's number.
            if not data:
                return True
            *lines, self._tail = (self._tail + data).split(b"\n")
            for line in lines:
                self._take(line)
            if len(self._tail) > _LINE_BYTES:
                self._tail = b""
        return None

    def _take(self, line: bytes) -> None:
        try:
            self._record(line)
        except Exception:
            # Boundary: one record; a defect of ours must not end the agent.
            self._lost += 1
            if not self._failed:
                log.exception("a record of the kernel log")
            self._failed = True

    def _record(self, line: bytes) -> None:
        head, semicolon, message = line.partition(b";")
        if not semicolon or line.startswith(b" "):
            return
        numbers = head.split(b",", 3)[1:3]
        if any(len(number) > _DIGITS for number in numbers):
            return
        try:
            sequence, microseconds = map(int, numbers)
        except ValueError:
            return
        if sequence < self._seen:
            return
        self._seen = 0
        if self._just_written:
            self._boot.heard(microseconds)
            self._just_written = False
        at = self._boot.at(microseconds)
        if self._next is not None:
            self._lost += max(0, sequence - self._next)
        else:
            # A pipe may have had nothing yet when it was looked at first.
            begin = self._boot.started_at if sequence == 0 else at
            self._covers_since = min(begin, self._covers_since or begin)
        self._next = sequence + 1
        text = message.decode("utf-8", "replace")
        if (event := self._lines.event(text, at, self._boot.boot_id)) is not None:
            self._deliver(event)


def opener(path: Path) -> Callable[[], int]:
    """Opens this path for `KernelLog`."""
    return lambda: os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _why(error: OSError, place: str) -> str:
    """Why it cannot be read, and what to grant."""
    if error.errno in {errno.ENOENT, errno.ENXIO, errno.ENODEV}:
        what = f"there is no {place} here; mount it from the node and grant CAP_SYSLOG"
    elif error.errno == errno.EACCES:
        what = f"the mode of {place} excludes uid {os.getuid()}; run as root, with CAP_SYSLOG"
    elif error.errno != errno.EPERM:
        what = f"{place}: {os.strerror(error.errno or 0)}"
    elif _restricted() and not _may_read():
        what = f"kernel.dmesg_restrict is 1 and CAP_SYSLOG is missing; grant it to read {place}"
    elif not _initial_user_namespace():
        what = (
            f"a capability of a user namespace does not open {place}; run without one (hostUsers)"
        )
    else:
        what = (
            f"this container's device cgroup does not allow {place}; allow the character device "
            "1:11, or run privileged"
        )
    return f"kernel log not readable: {_MISSING}: {what}"


def _restricted() -> bool:
    return _first_line("/proc/sys/kernel/dmesg_restrict") != "0"


def _may_read() -> bool:
    """Whether this process has CAP_SYSLOG."""
    for line in _read_text("/proc/self/status").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYSLOG & 1)
    return False


def _initial_user_namespace() -> bool:
    return _first_line("/proc/self/uid_map").split() == ["0", "0", "4294967295"]


def _first_line(path: str) -> str:
    return _read_text(path).partition("\n")[0]


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
