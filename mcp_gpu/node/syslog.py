"""The kernel log by syslog(2), which needs CAP_SYSLOG and no device: `Syslog`.

A container that is not privileged cannot open /dev/kmsg, whatever its capabilities: its device
cgroup forbids it. The call has no such bound, and the default seccomp profiles of containerd and
Docker allow it to whoever has CAP_SYSLOG. It gives the newest messages as text, from the ring as
it is: nothing is consumed or cleared, and nobody is woken, so that it has to be asked again and
again. What was there before is told from what is new by the last lines of the last answer.
"""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import anyio
import anyio.to_thread

from mcp_gpu.node.boot import Boot
from mcp_gpu.node.kmsg import SLICE_SECONDS

PLACE: Final = "syslog(2)"

SHARE: Final = 0.003
"""Of one core that asking may take. The kernel walks its whole ring for each answer, however short:
1.8 ms for 2,200 messages in 128 KiB, so some 30 ms for the 2 MiB of a machine with 256 cores (4 KiB
a core, by CONFIG_LOG_CPU_MAX_BUF_SHIFT)."""

MIN_SECONDS: Final = 2.0
MAX_SECONDS: Final = 30.0
"""Between two times of asking."""

_LATEST_BYTES: Final = 16_384
"""Asked for first: between two times there is rarely more that is new."""

_MARK_BYTES: Final = 4096
"""Of the end of an answer that are looked for in the next one."""

_RING_BYTES: Final = 1 << 18
"""Where the kernel does not tell the size of its ring."""

_MAX_BYTES: Final = 1 << 23
"""Most that is asked for at once. What a larger ring has besides is passed over."""

_READ_ALL: Final = 3
_SIZE_BUFFER: Final = 10
"""syslog(2): SYSLOG_ACTION_*. The others consume, clear or change something."""

_LINE: Final = re.compile(rb"<\d{1,4}>(?:\[ *(\d{1,12})\.(\d{6})\](?:\[ *[CT]\d+\])? ?)?(.*)")
"""A level, with printk.time the seconds since the boot, with CONFIG_PRINTK_CALLER who wrote it."""

_UNPRINTABLE: Final = re.compile(r"[^ -~]")

_NO_STAMPS: Final = (
    "the kernel log has no time stamps, so that only Xids from now on are told: set printk.time=1 "
    "for the kernel, or echo Y > /sys/module/printk/parameters/time"
)


def kernel(size: int) -> bytes:
    """The newest whole messages of this machine's kernel in so many bytes, or all.

    Raises:
        OSError: EPERM without CAP_SYSLOG, unless kernel.dmesg_restrict is 0; ENOSYS.
    """
    buffer = ctypes.create_string_buffer(size)
    return ctypes.string_at(buffer, _klogctl(_READ_ALL, buffer, size))


def ring_bytes() -> int:
    """A buffer that holds all messages of this machine's kernel. Never raises."""
    try:
        ring = _klogctl(_SIZE_BUFFER, None, 0)
    except OSError:
        ring = _RING_BYTES
    # The ring holds neither levels nor stamps, nor who wrote a line.
    return min(2 * ring, _MAX_BYTES)


class Syslog:
    """Asks for messages.

    Args:
        read: gives the newest messages in that many bytes; raises OSError.
        boot: of the kernel that is asked.
        take: takes each message and its time, in the event loop.
        whole: bytes that hold the whole ring.
        clock: Unix time.
    """

    place = PLACE

    def __init__(
        self,
        read: Callable[[int], bytes] = kernel,
        *,
        boot: Boot,
        take: Callable[[str, float], None],
        whole: Callable[[], int] = ring_bytes,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.message = ""
        self.lost = 0
        """How often messages may have been overwritten, or cleared by somebody, before they could
        be read: they have no numbers to count them by."""
        self.covers_since: float | None = None
        self.pause_seconds = MIN_SECONDS
        self._read, self._boot, self._take, self._whole = read, boot, take, whole
        self._clock = clock
        self._mark: bytes | None = None
        """The end of the last answer; None before the first."""
        self._asked_at = 0.0

    def open(self) -> None:
        """Raises: OSError: this process may not ask."""
        self._read(0)  # the kernel checks as for any other, and walks through no messages

    def close(self) -> None:
        """There is nothing to close."""

    async def follow(self, settled: anyio.Event) -> None:
        """Ask for ever; `settled` is set once all that was there has been read.

        Raises: OSError: it cannot be asked any more.
        """
        while True:
            await self.ask()
            settled.set()
            await anyio.sleep(self.pause_seconds)

    async def ask(self) -> None:
        """Read what has come since the last time.

        Raises: OSError
        """
        first = self._mark is None
        data, seconds = await anyio.to_thread.run_sync(self._new, abandon_on_cancel=True)
        self.pause_seconds = min(max(seconds / SHARE, MIN_SECONDS), MAX_SECONDS)
        now = self._clock()
        since, self._asked_at = now - self._asked_at, now
        lines = data.split(b"\n")
        if first:
            self._begin(lines, now)
        newest: int | None = None
        until = time.monotonic() + SLICE_SECONDS
        for line in lines:
            newest = self._line(line, None if first else now) or newest
            if time.monotonic() > until:
                await anyio.lowlevel.checkpoint()
                until = time.monotonic() + SLICE_SECONDS
        if newest is not None and not first:
            self._boot.heard(newest, late=since)

    def _new(self) -> tuple[bytes, float]:
        """What has come since the last time, and what it has cost in seconds of CPU.

        In a thread: for a large ring the kernel takes longer than an event loop may wait.
        """
        begun = time.thread_time()
        new = None
        if self._mark:
            data = self._read(_LATEST_BYTES)
            new = _after(data, self._mark)
        if new is None:
            data = self._read(self._whole())
            new = data
            if self._mark:
                # Of the mark's own beginning the ring may have nothing left.
                last = self._mark[self._mark.rfind(b"\n", 0, -1) + 1 :]
                found = _after(data, self._mark)
                found = _after(data, last) if found is None else found
                if found is None:
                    self.lost += 1
                else:
                    new = found
        self._mark = data[-_MARK_BYTES:]
        return new, time.thread_time() - begun

    def _begin(self, lines: list[bytes], now: float) -> None:
        """From when on the ring tells everything."""
        found = next((found for line in lines if (found := _LINE.fullmatch(line))), None)
        oldest = _stamp(found) if found else None
        if oldest is None:
            self.covers_since = now
        else:
            self.covers_since = self._boot.at(oldest) if oldest else self._boot.started_at

    def _line(self, line: bytes, now: float | None) -> int | None:
        """Take one line; `now` is the time of what has no stamp, None: it is not told.

        Returns its stamp in microseconds.
        """
        found = _LINE.fullmatch(line)
        if found is None:
            return None  # the end of a line whose beginning did not fit
        stamp = _stamp(found)
        self.message = _NO_STAMPS if stamp is None else ""
        at = now if stamp is None else self._boot.at(stamp)
        if at is not None:
            self._take(_text(found[3]), at)
        return stamp


def _after(data: bytes, mark: bytes) -> bytes | None:
    """What follows the mark; None: it is not there.

    With time stamps no line is like another. Without, what repeats itself for longer than the mark
    is taken for told.
    """
    found = 0 if data.startswith(mark) else data.rfind(mark)
    return None if found < 0 else data[found + len(mark) :]


def _stamp(found: re.Match[bytes]) -> int | None:
    return None if found[1] is None else int(found[1]) * 1_000_000 + int(found[2])


def _text(message: bytes) -> str:
    """As /dev/kmsg would give it: the call gives raw control characters."""
    text = message.decode("ascii", "backslashreplace")
    return text if text.isprintable() else _UNPRINTABLE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return f"\\x{ord(found[0]):02x}"


def _klogctl(action: int, buffer: Any, size: int) -> int:
    """Raises: OSError"""
    done: int = _libc().klogctl(action, buffer, size)
    if done < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), PLACE)
    return done


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
