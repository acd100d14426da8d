"""What this process can see of its node, so that an answer can say what it could not."""

from __future__ import annotations

import os
import re
import socket
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from pydantic import Field

from mcp_gpu.gpu.model import Snapshot
from mcp_gpu.gpu.privileges import ADMIN, JOURNAL, KERNEL_LOG, PROCESSES, ROOT
from mcp_gpu.gpu.wire import Wire
from mcp_gpu.gpu.xid.model import Source, SourceState
from transports.text import visible

LOOK_SECONDS: Final = 10.0

WHY_CHARS: Final = 300
"""Longest reason why a sense does not work."""

_INITIAL_PID_NAMESPACE: Final = 0xEFFFFFFC
"""Inode of the host's own, in every kernel: PROC_PID_INIT_INO."""

_MINOR: Final = re.compile(r"^DeviceFileMinor:\s*([0-9]{1,4})$", re.MULTILINE)


class Sense(Wire):
    """One thing that an agent may or may not be able to look at."""

    name: str = Field(description="Such as kernel_log or host_processes.")
    works: bool
    why: str = Field(description="Why it does not; empty if it does.")
    unlocks: str = Field(description="What is missing from answers without it, and what grants it.")


class Sight(Wire):
    """All of them, and as whom the agent looks."""

    uid: int
    driver_version: str | None
    senses: tuple[Sense, ...]
    missing_symbols: tuple[str, ...] = Field(
        description="Functions that this driver's library does not have."
    )

    @property
    def told(self) -> dict[str, str]:
        """Each sense's name to "yes" or why not: for `server/discover`."""
        return {sense.name: "yes" if sense.works else sense.why for sense in self.senses}


_SOURCES: Final[dict[Source, tuple[str, str]]] = {
    "nvml": (
        "nvml_events",
        "Xids the moment they happen, but for 79, 119 and 120; needs no privilege.",
    ),
    "kernel_log": (
        "kernel_log",
        f"All Xids of this boot, 79, 119 and 120 among them; {KERNEL_LOG}.",
    ),
    "journal": (
        "journal",
        f"Xids of former boots; mount {JOURNAL}.",
    ),
}


def look(
    snapshot: Snapshot,
    sources: Sequence[SourceState],
    *,
    proc: Path = Path("/proc"),
    dev: Path = Path("/dev"),
    pod_resources: Path,
) -> Sight:
    """Look around. Takes well under a millisecond, never blocks and never raises.

    Args:
        proc: where /proc is.
        dev: where /dev is.
        pod_resources: the kubelet's socket.
    """
    told = {source.source: source for source in sources}
    senses = [
        _sense("driver", _driver(snapshot), "Everything about GPUs; the NVIDIA driver."),
        *(
            _sense(name, _source(told.get(source)), unlocks)
            for source, (name, unlocks) in _SOURCES.items()
        ),
        _sense(
            "host_processes",
            host_processes(proc),
            f"Whose processes are on a GPU; {PROCESSES}.",
        ),
        _sense(
            "pod_resources",
            _pod_resources(pod_resources),
            f"Which pods hold a GPU; the folder {pod_resources.parent} mounted, and {ROOT}.",
        ),
        _sense(
            "mig_monitor",
            _mig_monitor(proc, dev),
            f"Totals of a GPU that is cut into MIG instances; {ADMIN}.",
        ),
    ]
    return Sight(
        uid=os.getuid(),
        driver_version=snapshot.driver_version,
        senses=tuple(senses),
        missing_symbols=snapshot.missing_symbols,
    )


class Lookout:
    """Looks around for whoever asks, at most every few seconds.

    Args:
        snapshot: what is known of the GPUs now.
        sources: what each source of Xids can see now.
        pod_resources: the kubelet's socket.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        sources: Callable[[], Sequence[SourceState]],
        *,
        pod_resources: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._snapshot, self._sources, self._clock = snapshot, sources, clock
        self._pod_resources = pod_resources
        self._sight: Sight | None = None
        self._looked_at = 0.0

    def sight(self) -> Sight:
        """What can be seen, as of the last few seconds."""
        now = self._clock()
        if self._sight is None or now - self._looked_at >= LOOK_SECONDS:
            self._sight = look(self._snapshot(), self._sources(), pod_resources=self._pod_resources)
            self._looked_at = now
        return self._sight


def _sense(name: str, why: str, unlocks: str) -> Sense:
    # Every client of the agent is told of it: short, and so that it can be printed.
    why = visible(why[:WHY_CHARS])
    return Sense(name=name, works=not why, why=why, unlocks=unlocks)


def _driver(snapshot: Snapshot) -> str:
    if snapshot.state == "ok":
        return ""
    return snapshot.failure.message if snapshot.failure else "NVML has not answered yet"


def _source(state: SourceState | None) -> str:
    if state is None:
        return "nobody reads it"
    return "" if state.live else state.message


def host_processes(proc: Path) -> str:
    """Why pids of the host mean nothing to this process; empty where they do."""
    try:
        inode = (proc / "self" / "ns" / "pid").stat().st_ino
    except OSError as error:
        return f"the process namespace is not known: {error.strerror}"
    own = "a process namespace of its own: other pods' processes are not seen"
    return "" if inode == _INITIAL_PID_NAMESPACE else own


def _pod_resources(path: Path) -> str:
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return f"{path} is no socket"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as one:
            one.connect(str(path))
    except BlockingIOError:
        return ""  # Its queue is full, so somebody listens.
    except OSError as error:
        return f"{path}: {error.strerror}"
    return ""


def _mig_monitor(proc: Path, dev: Path) -> str:
    capability = proc / "driver" / "nvidia" / "capabilities" / "mig" / "monitor"
    try:
        found = _MINOR.search(capability.read_text(encoding="ascii", errors="replace"))
        if found is None:
            return f"{capability} names no device"
        os.close(os.open(dev / "nvidia-caps" / f"nvidia-cap{found[1]}", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return f"the driver's capability mig/monitor: {error.strerror}"
    return ""
