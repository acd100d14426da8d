"""From a process id to the pod, the container and the program: `ProcessPods`.

/proc/PID/cgroup names a pod's uid and a container's id whatever the runtime and the driver of
cgroups, and without asking Kubernetes. Arguments and environments are not told: they hold secrets.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from mcp_gpu.node.aside import Aside, Blocked
from mcp_gpu.node.sight import host_processes
from transports.text import visible

__all__ = ["PodProcess", "ProcessPods", "Whose", "cgroup_place"]

LOOK_SECONDS: Final = 0.5
"""Longest wait for /proc. It answers in some ten microseconds, but for a process that holds its
own address space or a cgroup that is being taken down: those can block for seconds."""

THREADS: Final = 16
"""Looks at once, those that hang among them: no process is asked about again that one hangs at."""

_ENDED: Final = "the process has ended"

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
        self._aside = Aside("proc", most=THREADS)
        self._left: list[_Look] = []
        """Looks that were given up, and hang."""

    def blind(self) -> str:
        """As `Whose`."""
        return host_processes(self._proc)

    async def look_up(self, pids: Iterable[int], read_at: float) -> Mapping[int, PodProcess]:
        """As `Whose`. A process that one look hangs at keeps the next ones from none but itself."""
        wanted = sorted(set(pids))
        self._left = [look for look in self._left if look.at is not None]
        look = _Look(wanted, {each.at: each.naming for each in self._left}, read_at, self._proc)
        if wanted:
            try:
                await self._aside.run(look.run, LOOK_SECONDS)
            except Blocked:
                if look.at is not None:
                    self._left.append(look)
            finally:
                look.given_up = True
        slow = "/proc did not answer in time"
        return {pid: look.found.get(pid) or PodProcess(pid, why=slow) for pid in wanted}


class _Look:
    """One after another, on a thread that may hang at any of them.

    Args:
        hung: processes that other looks hang at, and whether only at their command line.
    """

    def __init__(
        self, wanted: Iterable[int], hung: Mapping[int | None, bool], read_at: float, proc: Path
    ) -> None:
        self._wanted, self._hung, self._read_at, self._proc = wanted, hung, read_at, proc
        self.found: dict[int, PodProcess] = {}
        self.at: int | None = None
        """The process that is looked at now."""
        self.naming = False
        """Whether only its command line is still to be read."""
        self.given_up = False

    def run(self) -> None:
        kernel = _Kernel.of(self._proc)
        for pid in self._wanted:
            naming = self._hung.get(pid, True)
            if naming and not self.given_up:
                self.at, self.naming = pid, False
                for told in _told(pid, self._read_at, proc=self._proc, kernel=kernel):
                    self.found[pid], self.naming = told, True
                    if pid in self._hung:
                        break
        self.at = None


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


def _told(pid: int, read_at: float, *, proc: Path, kernel: _Kernel) -> Iterator[PodProcess]:
    """One process, and the same once more with the name in its command line. Never raises.

    All files are opened below one open folder: the kernel binds that to the process, so that
    they can never be of another that has got the number meanwhile. The command line lies in the
    process's own memory, which it may hold locked: it comes last, and not of one that waits in
    the kernel (state D).
    """
    try:
        folder = os.open(proc / str(pid), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield PodProcess(pid, why=_ENDED)
        return
    try:
        stat = _stat(_read(folder, "stat"))
        started_at = _started_at(stat, kernel)
        if started_at is not None and started_at > read_at + _REUSE_SECONDS:
            yield PodProcess(pid, why=f"{_ENDED}, and its number is another's")
            return
        place = cgroup_place(_read(folder, "cgroup"), whole=kernel.whole)
        comm = _read(folder, "comm")
        told = PodProcess(
            pid,
            place.pod_uid,
            place.container_id,
            _command(comm, ""),
            _user_id(_read(folder, "status")),
            started_at,
            place.podless,
            place.why,
        )
        yield told
        if stat[:1] != ["D"]:
            yield told._replace(command=_command(comm, _read(folder, "cmdline")))
    except OSError:
        yield PodProcess(pid, why=_ENDED)
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


def _stat(stat: str) -> list[str]:
    """The fields from the state on."""
    # The name stands in brackets and may hold any character, brackets and blanks among them.
    return stat.rpartition(")")[2].split()


def _started_at(fields: Sequence[str], kernel: _Kernel) -> float | None:
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
