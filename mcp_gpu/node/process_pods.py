"""From a process id to the pod, the container and the program: `ProcessPods`.

/proc/PID/cgroup names a pod's uid and a container's id whatever the runtime and the driver of
cgroups, and without asking Kubernetes. Arguments and environments are not told: they hold secrets.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import anyio
from anyio.from_thread import run_sync
from anyio.lowlevel import current_token

from mcp_gpu.node.sight import host_processes
from transports.text import visible

__all__ = ["PodProcess", "ProcessPods", "Whose", "cgroup_place"]

LOOK_SECONDS: Final = 0.5
"""Longest wait for /proc. It answers in some ten microseconds, but for a process that holds its
own address space or a cgroup that is being taken down: those can block for seconds."""

_REUSE_SECONDS: Final = 2.0
"""A process that began so much after NVML told its number is another one. The kernel counts from
boot, which /proc/stat gives in whole seconds."""

_READ_BYTES: Final = 65_536
_COMMAND_CHARS: Final = 64

_POD: Final = (
    r"(?:.*[-_])?pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?"
)
"""A folder of a pod: `pod<uid>` of cgroupfs, `kubepods-burstable-pod<uid>.slice` of systemd, where
underscores stand for hyphens. A static pod's uid is a hash of its file. Compiled at its first use,
as the next one: a start has no time for it."""

_CONTAINER: Final = r"(?:[a-z][a-z-]*-)?([0-9a-f]{64})(?:\.scope)?"
"""A folder of a container: its id, alone or as `cri-containerd-<id>.scope`, `crio-<id>.scope` or
`docker-<id>.scope`."""

_KUBERNETES: Final = "k8s.io"
"""containerd's folder for the kubelet's containers where nobody names another."""

_INITIAL_CGROUP_NAMESPACE: Final = 0xEFFFFFFB
"""Inode of the host's own, in every kernel: PROC_CGROUP_INIT_INO."""


class PodProcess(NamedTuple):
    """Whose a process is, as far as it is known."""

    pid: int
    pod_uid: str | None = None
    container_id: str | None = None
    command: str | None = None
    """The program's name, without its arguments."""
    user_id: int | None = None
    started_at: float | None = None
    """Unix time."""
    podless: bool | None = None
    """Whether it is of no pod. None: not known."""
    why: str = ""
    """Why more is not known; empty if all is."""


class Whose(Protocol):
    """What tells whose processes are: this node's /proc, or a simulated node."""

    def blind(self) -> str:
        """Why pids of this node mean nothing here; empty where they do."""

    async def look_up(self, pids: Iterable[int], read_at: float) -> Mapping[int, PodProcess]:
        """What is known of each of them. Bounded; never raises.

        Args:
            read_at: Unix time at which they were told: what began later is another process.
        """


class ProcessPods:
    """Looks processes up in /proc.

    Args:
        proc: where /proc is.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._busy = threading.Lock()

    def blind(self) -> str:
        """As `Whose`."""
        return host_processes(self._proc)

    async def look_up(self, pids: Iterable[int], read_at: float) -> Mapping[int, PodProcess]:
        """As `Whose`. One look at a time: where it hangs, so would the next."""
        wanted = sorted(set(pids))
        found: dict[int, PodProcess] = {}
        if wanted and self._busy.acquire(blocking=False):
            done, token = anyio.Event(), current_token()

            def look() -> None:
                try:
                    kernel = _Kernel.of(self._proc)
                    for pid in wanted:
                        found[pid] = _look_at(pid, read_at, proc=self._proc, kernel=kernel)
                finally:
                    self._busy.release()
                    try:
                        run_sync(done.set, token=token)
                    except RuntimeError:
                        pass  # That loop has ended; nobody waits there any more.

            # A thread of the executor's kind would hold up the exit for as long as it hangs.
            threading.Thread(target=look, name="proc", daemon=True).start()
            with anyio.move_on_after(LOOK_SECONDS):
                await done.wait()
        slow = "/proc did not answer in time"
        return {pid: found.get(pid) or PodProcess(pid, why=slow) for pid in wanted}


class _Kernel(NamedTuple):
    """What must be known of the kernel to read its files about a process."""

    booted_at: float | None
    ticks_per_second: int
    whole: bool
    """Whether paths of cgroups are the host's own."""

    @classmethod
    def of(cls, proc: Path) -> _Kernel:
        found: re.Match[str] | None = None
        whole = False
        try:
            whole = (proc / "self" / "ns" / "cgroup").stat().st_ino == _INITIAL_CGROUP_NAMESPACE
            stat = (proc / "stat").read_text(encoding="ascii", errors="replace")
            found = re.search(r"^btime (\d+)$", stat, re.MULTILINE)
        except OSError:
            pass  # The processes that are gone show as such.
        booted_at = float(found[1]) if found else None
        return cls(booted_at, os.sysconf("SC_CLK_TCK"), whole)


def _look_at(pid: int, read_at: float, *, proc: Path, kernel: _Kernel) -> PodProcess:
    """One process. Never raises.

    All files are opened below one open folder: the kernel binds that to the process, so that
    they can never be of another that has got the number meanwhile.
    """
    try:
        folder = os.open(proc / str(pid), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return PodProcess(pid, why="the process has ended")
    try:
        started_at = _started_at(_read(folder, "stat"), kernel)
        if started_at is not None and started_at > read_at + _REUSE_SECONDS:
            return PodProcess(pid, why="the process has ended, and its number is another's")
        place = cgroup_place(_read(folder, "cgroup"), whole=kernel.whole)
        return PodProcess(
            pid,
            place.pod_uid,
            place.container_id,
            _command(_read(folder, "comm"), _read(folder, "cmdline")),
            _user_id(_read(folder, "status")),
            started_at,
            place.podless,
            place.why,
        )
    except OSError:
        return PodProcess(pid, why="the process has ended")
    finally:
        os.close(folder)


class Place(NamedTuple):
    """Where cgroups put a process."""

    pod_uid: str | None = None
    container_id: str | None = None
    podless: bool | None = None
    why: str = ""


def cgroup_place(cgroup: str, *, whole: bool = True) -> Place:
    """What /proc/PID/cgroup tells, of cgroups v1, v2 or both.

    Args:
        whole: whether the paths are the host's own. In another cgroup namespace what lies outside
            of it begins with `/..`, and `/` is whatever the reader itself is in.
    """
    # Runtimes that were told another driver of cgroups than the kubelet join the parts by colons:
    # system.slice:cri-containerd:<id>.
    paths = [line.split(":", 2)[2] for line in cgroup.splitlines() if line.count(":") >= 2]
    container: str | None = None
    for path in paths:
        pod: str | None = None
        inner: str | None = None
        for part in re.split("[/:]", path):
            if found := re.fullmatch(_POD, part):
                # Of a node that is a container itself the outer id is the node's.
                pod, inner = found[1].replace("_", "-"), None
            elif (held := re.fullmatch(_CONTAINER, part)) and inner is None:
                inner = held[1]
        if pod is not None:
            return Place(pod, inner, podless=False)
        container = container or inner
    if not paths:
        return Place(why="its cgroup cannot be read")
    if not whole and {part for path in paths for part in path.split("/")} <= {"", ".."}:
        return Place(why="it is in the agent's own pod or container")
    if container is not None and not whole:
        # The folder of a pod that the reader itself is in is not named.
        return Place(None, container, why="it may be of the agent's own pod")
    if container is not None and any(_KUBERNETES in path.split("/") for path in paths):
        return Place(None, container, why="the kubelet makes no cgroups of pods (cgroupsPerQOS)")
    return Place(None, container, podless=True)


def _read(folder: int, name: str) -> str:
    """Raises: OSError: the process has ended."""
    opened = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        return os.read(opened, _READ_BYTES).decode(errors="replace")
    finally:
        os.close(opened)


def _started_at(stat: str, kernel: _Kernel) -> float | None:
    # The name stands in brackets and may hold any character, brackets and blanks among them.
    fields = stat.rpartition(")")[2].split()
    if kernel.booted_at is None or len(fields) < 20 or not fields[19].isdecimal():
        return None
    return kernel.booted_at + int(fields[19]) / kernel.ticks_per_second


def _user_id(status: str) -> int | None:
    """Not the folder's owner: that is root where the process keeps its memory to itself."""
    found = re.search(r"^Uid:\s+(\d+)", status, re.MULTILINE)
    return int(found[1]) if found else None


def _command(comm: str, cmdline: str) -> str | None:
    """The program's name: the end of its command line's first word, and beside it the name that it
    gave itself, if that is another.

    A program may write all it likes over its command line: what could be an argument with its
    value is left out.
    """
    name = comm.strip("\n")
    program = cmdline.split("\0", 1)[0].split(" ", 1)[0].rpartition("/")[2]
    if not program or "=" in program:
        told = name
    elif not name or program.startswith(name):
        told = program  # The kernel keeps 15 characters.
    else:
        told = f"{program[:_COMMAND_CHARS]} ({name})"
    return visible(told[:_COMMAND_CHARS]) or None
