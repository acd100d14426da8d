"""The kernel log: every Xid of this boot that the kernel's ring still holds, then those that come.

Read from its device, which tells of each message at once and numbers them, or where that does not
open by syslog(2): `Kmsg`, `Syslog`.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import anyio

from mcp_gpu.gpu.privileges import KERNEL_LOG
from mcp_gpu.gpu.xid.model import SourceState, XidEvent
from mcp_gpu.node.boot import Boot
from mcp_gpu.node.kmsg import Kmsg
from mcp_gpu.node.lines import XidLines
from mcp_gpu.node.syslog import Syslog

log = logging.getLogger(__name__)

_RETRY_SECONDS: Final = 5.0
_RETRY_MAX_SECONDS: Final = 300.0

_CAP_SYSLOG: Final = 34

_MISSING: Final = "79, 119 and 120 may be absent"


class Way(Protocol):
    """One way to read it."""

    @property
    def place(self) -> str:
        """What it is called."""

    @property
    def message(self) -> str:
        """What is missing from it though it is read."""

    @property
    def lost(self) -> int:
        """Messages that could not be read."""

    @property
    def covers_since(self) -> float | None:
        """Unix seconds."""

    def open(self) -> None:
        """Raises: OSError"""

    def close(self) -> None:
        """Once for each `open`."""

    async def follow(self, settled: anyio.Event) -> None:
        """Read for ever; `settled` is set once all that was there has been read.

        Raises: OSError: it cannot be read any more.
        """


class KernelLog:
    """Follows a kernel log for ever.

    Args:
        opened: opens the device, without blocking, and returns the file descriptor.
        boot: of the kernel that writes it.
        deliver: takes each Xid, in the event loop.
        place: what the device is called in messages.
        call: asks the same kernel, where the device does not open.
    """

    def __init__(
        self,
        opened: Callable[[], int],
        *,
        boot: Boot,
        deliver: Callable[[XidEvent], None],
        place: str = "/dev/kmsg",
        call: Callable[[int], bytes] | None = None,
    ) -> None:
        self._boot, self._deliver = boot, deliver
        self._lines = XidLines("kernel_log")
        self._ways: list[Way] = [Kmsg(opened, boot=boot, take=self._take, place=place)]
        if call is not None:
            self._ways.append(Syslog(call, boot=boot, take=self._take))
        self._way: Way | None = None
        """The one that is read or was last."""
        self._live = False
        self._message = "kernel log not opened yet"
        self._failed = 0
        """Messages that a defect of ours has cost."""
        self.settled = anyio.Event()
        """Set once all that was there has been read, or nothing can be."""

    @property
    def state(self) -> SourceState:
        """What can be seen now."""
        way = self._way
        return SourceState(
            source="kernel_log",
            live=self._live,
            place=way.place if way is not None and self._live else "",
            message=way.message if way is not None and self._live else self._message,
            covers_since=None if way is None else way.covers_since,
            lost_records=self._failed + (0 if way is None else way.lost),
        )

    async def run(self) -> None:
        """Read until cancelled; open again what cannot be read."""
        pause = _RETRY_SECONDS
        while True:
            way = self._open()
            if way is not None:
                pause = _RETRY_SECONDS
                try:
                    await way.follow(self.settled)
                except OSError as error:
                    self._become(False, _unreadable(_why(error, way.place)))
                finally:
                    way.close()
            self.settled.set()
            await anyio.sleep(pause)
            pause = min(2 * pause, _RETRY_MAX_SECONDS)

    def _open(self) -> Way | None:
        """The first way that opens, and for good: another one would tell everything again."""
        refused: list[OSError] = []
        for way in self._ways:
            try:
                way.open()
            except OSError as error:
                refused.append(error)
                continue
            self._way, self._ways = way, [way]
            instead = f", as the device does not open ({refused[0].strerror})" if refused else ""
            self._become(True, f"kernel log: reading {way.place}{instead}")
            return way
        device = self._ways[0].place
        why = _why(refused[0], device) if len(refused) == 1 else _why_neither(refused[1], device)
        self._become(False, _unreadable(why))
        return None

    def _become(self, live: bool, message: str) -> None:
        if message != self._message:
            log.info("%s", message)
        self._live, self._message = live, message

    def _take(self, text: str, at: float) -> None:
        try:
            if (event := self._lines.event(text, at, self._boot.boot_id)) is not None:
                self._deliver(event)
        except Exception:
            # Boundary: one message; a defect of ours must not end the agent.
            if not self._failed:  # once: a full ring has 20,000
                log.exception("a record of the kernel log")
            self._failed += 1


def _unreadable(why: str) -> str:
    return f"kernel log not readable: {_MISSING}: {why}"


def _why_neither(error: OSError, device: str) -> str:
    """Why neither the device nor the call can be used, and what to grant for the call."""
    what = f"neither {device} nor syslog(2)"
    if error.errno != errno.EPERM:
        return f"{what}: {os.strerror(error.errno or 0)}"
    if not _may_read():
        return f"{what} without {KERNEL_LOG}"
    if not _initial_user_namespace():
        return f"{what} with a capability of a user namespace; run without one (hostUsers: true)"
    return f"{what}: the seccomp profile forbids the call; use RuntimeDefault"


def _why(error: OSError, place: str) -> str:
    """Why it cannot be read, and what to grant."""
    if error.errno in {errno.ENOENT, errno.ENXIO, errno.ENODEV}:
        return f"there is no {place} here; mount it from the node and grant {KERNEL_LOG}"
    if error.errno == errno.EACCES:
        return f"the mode of {place} excludes uid {os.getuid()}; run as root, with {KERNEL_LOG}"
    if error.errno != errno.EPERM:
        return f"{place}: {os.strerror(error.errno or 0)}"
    if _restricted() and not _may_read():
        return f"kernel.dmesg_restrict is 1: {place} wants {KERNEL_LOG}"
    if not _initial_user_namespace():
        return (
            f"a capability of a user namespace does not open {place}; run without one "
            "(hostUsers: true)"
        )
    return (
        f"this container's device cgroup does not allow {place}; allow the character device 1:11, "
        "or run privileged"
    )


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
