"""The kernel log's device, /dev/kmsg: what the kernel's ring still holds, then live.

One record is `priority,sequence,microseconds,flags;message`, with further lines that begin with a
blank (kernel documentation, ABI/testing/dev-kmsg). The device gives one per read, EAGAIN at the
end and EPIPE where the ring has overtaken the reader. A FIFO, a pipe or a file of such records is
read alike.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import anyio

from mcp_gpu.node.boot import Boot

SLICE_SECONDS: Final = 0.005
"""Longest that records are read without letting the event loop go on: a full ring is 20,000."""

_NUMBER: Final = os.makedev(1, 11)
"""Of the device. Some containers have /dev/null or a console under its name."""

_READ_BYTES: Final = 16_384
"""The device refuses to give a record to a buffer that is too small; the longest are 8 KiB."""

_LINE_BYTES: Final = 65_536
"""What has no line end by then is no record."""

_DIGITS: Final = 20
"""Of a sequence number or a time stamp: those of 64 bits have no more."""

_POLL_SECONDS: Final = 1.0
"""How often a file, or a FIFO that nobody writes to, is looked at."""


class Kmsg:
    """Reads records.

    Args:
        opened: opens the device, without blocking, and returns the file descriptor.
        boot: of the kernel that writes it.
        take: takes each message and its time, in the event loop.
        place: what the device is called.
    """

    def __init__(
        self,
        opened: Callable[[], int],
        *,
        boot: Boot,
        take: Callable[[str, float], None],
        place: str,
    ) -> None:
        self.place, self.message = place, ""
        self.lost = 0
        """Records that were overwritten before they could be read."""
        self.covers_since: float | None = None
        self._opened, self._boot, self._take = opened, boot, take
        self._fd, self._device = -1, False
        self._tail = b""
        self._next: int | None = None
        """The sequence number after the last record's."""
        self._seen = 0
        """Records before this one were delivered before the device was opened again."""
        self._just_written = False
        """Whether the next record is what woke us."""

    def open(self) -> None:
        """Raises: OSError: ENODEV for another device in its place."""
        self._fd = self._opened()
        found = os.fstat(self._fd)
        self._device = stat.S_ISCHR(found.st_mode)
        if self._device and found.st_rdev != _NUMBER:
            os.close(self._fd)
            raise OSError(errno.ENODEV, "another device is in its place", self.place)
        self._tail, self._seen, self._just_written = b"", self._next or 0, False

    def close(self) -> None:
        """Once for each `open`."""
        os.close(self._fd)

    async def follow(self, settled: anyio.Event) -> None:
        """Read for ever; `settled` is set once all that was there has been read.

        Raises: OSError: it cannot be read any more.
        """
        while True:
            at_end = self._read(time.monotonic() + SLICE_SECONDS)
            if at_end is None:
                await anyio.lowlevel.checkpoint()
                continue
            if self.covers_since is None:
                self.covers_since = time.time()
            settled.set()
            if at_end:
                await anyio.sleep(_POLL_SECONDS)
            else:
                await anyio.wait_readable(self._fd)
                self._just_written = self._device

    def _read(self, until: float) -> bool | None:
        """Read what there is. None: there is more; else whether it ended as a file does."""
        while time.monotonic() < until:
            try:
                data = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                return False
            except BrokenPipeError:
                continue  # What was overwritten shows in the next record's number.
            if not data:
                return True
            *lines, self._tail = (self._tail + data).split(b"\n")
            for line in lines:
                self._record(line)
            if len(self._tail) > _LINE_BYTES:
                self._tail = b""
        return None

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
            self.lost += max(0, sequence - self._next)
        else:
            # A pipe may have had nothing yet when it was looked at first.
            begin = self._boot.started_at if sequence == 0 else at
            self.covers_since = min(begin, self.covers_since or begin)
        self._next = sequence + 1
        self._take(message.decode("utf-8", "replace"), at)


def opener(path: Path) -> Callable[[], int]:
    """Opens this path for `Kmsg`."""
    return lambda: os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
