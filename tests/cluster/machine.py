"""A machine of the cluster: its own network, mounts and cgroups, and the daemons in it.

Every process of a machine is in a cgroup of the machine from its first instruction on, and so
is whatever it starts; containers too. That is how the tear-down finds all of them, also when
whoever started them was killed in the middle. Their mounts exist in the machine's mount
namespace alone, so the kernel takes them away with the last process.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from cluster.plan import Plan
from cluster.process import Process, run

__all__ = ["Machine", "Namespace", "hierarchies", "members"]

PRIVATE = ("/run", "/var/lib", "/var/log")
"""Folders of the machine's own. They are there on every Linux, so that none has to be made."""

END_SECONDS = 3
"""What a daemon gets to end by itself. The API server would wait for each of its watches."""

KERNEL_SETTINGS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""What the kubelet wants to find, and otherwise would set on the machine all of this runs on."""

SETUP = r"""
set -e
data=$1
mount --make-rshared /
awk '$3 == "cgroup" || $3 == "cgroup2" { print $3, $2, $4 }' /proc/mounts | tac |
while read -r kind at options; do
    controllers=$(echo "$options" |
        sed -E 's/\b(rw|ro|relatime|noatime|nosuid|nodev|noexec|xattr|clone_children)\b,?//g')
    umount "$at"
    if [ "$kind" = cgroup ]; then
        mount -t cgroup -o "$controllers" cgroup "$at"
    else
        mount -t cgroup2 cgroup2 "$at"
    fi
    echo $$ >"$at/daemons/cgroup.procs"
done
for setting in "$data"/sysctl/*; do
    mount --bind "$setting" "/proc/sys/$(basename "$setting" | tr : /)"
done
for folder in $PRIVATE; do
    mkdir -p "$data$folder"
    mount --bind "$data$folder" "$folder"
done
echo ready
exec >/dev/null sleep infinity
"""
"""Makes the machine's mounts, then holds them. The cgroup file systems are mounted anew because
only then do they begin at the machine's own cgroup."""


def hierarchies() -> Iterator[Path]:
    """Where cgroup file systems are mounted: one on a newer Linux, a dozen on an older."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, at, kind, *_ = line.split()
        if kind in ("cgroup", "cgroup2"):
            yield Path(at)


def members(prefix: str) -> list[Process]:
    """All processes in the cgroups of that name and below."""
    pids = set()
    for hierarchy in hierarchies():
        for path in (hierarchy / prefix).rglob("cgroup.procs"):
            try:
                pids |= {int(pid) for pid in path.read_text().split()}
            except OSError:  # the cgroup went, or is one of threads
                pass
    return [process for pid in sorted(pids) if (process := Process.of(pid))]


class Namespace:
    """A network namespace, in which commands run."""

    def __init__(self, plan: Plan, name: str) -> None:
        self.plan = plan
        self.name = name
        self.namespace = f"{plan.prefix}-{name}"
        self.path = Path("/run/netns") / self.namespace

    def create(self) -> None:
        run("ip", "netns", "add", self.namespace)
        self.ip("link set lo up")

    def entry(self) -> list[str]:
        """Words to put before a command so that it runs in here."""
        return self.wires()

    def wires(self) -> list[str]:
        """Words to put before a command so that it uses the network of this namespace."""
        return ["nsenter", f"--net={self.path}", "--"]

    def run(self, *argv: str, stdin: str | None = None, timeout: float = 60) -> str:
        """As `process.run`, in here."""
        return run(*self.entry(), *argv, stdin=stdin, timeout=timeout)

    def ip(self, *commands: str) -> None:
        """Commands of `ip`, in one go."""
        run(*self.wires(), "ip", "-batch", "-", stdin="\n".join(commands) + "\n")

    def nft(self, rules: str) -> str:
        return run(*self.wires(), "nft", "-f", "-", stdin=rules)

    def sysctl(self, **values: int) -> None:
        """Settings of this namespace's network."""
        run(
            *self.wires(),
            "sysctl",
            "-qw",
            *[f"net.{name}={value}" for name, value in values.items()],
        )


class Machine(Namespace):
    """A network namespace with mounts, cgroups and daemons of its own."""

    def __init__(self, plan: Plan, name: str) -> None:
        super().__init__(plan, name)
        self.folder = plan.folder / name
        self.cgroup = f"{plan.prefix}/{name}"

    def create(self) -> None:
        super().create()
        for path in ("sysctl", "processes"):
            (self.folder / path).mkdir(parents=True)
        for name, value in KERNEL_SETTINGS.items():
            (self.folder / "sysctl" / name.replace("/", ":")).write_text(f"{value}\n")
        for hierarchy in hierarchies():
            _make_cgroup(hierarchy, self.cgroup)
            _make_cgroup(hierarchy, f"{self.cgroup}/daemons")
        holder = ["unshare", "--mount", "--cgroup", "--propagation", "private", "--"]
        holder += ["env", f"PRIVATE={' '.join(PRIVATE)}", "sh", "-c", SETUP, "setup"]
        with (self.folder / "setup.log").open("wb") as log:
            popen = self._spawn(
                self.cgroup, [*self.wires(), *holder, str(self.folder)], subprocess.PIPE, log
            )
            assert popen.stdout is not None
            with popen.stdout:
                # Ends with the word, or with the process.
                said = popen.stdout.readline()
        if said != b"ready\n":
            popen.wait()
            raise RuntimeError(f"{self.name}: {(self.folder / 'setup.log').read_text()}")
        self._remember("holder", popen)

    def entry(self) -> list[str]:
        holder = self.process("holder")
        if holder is None:
            raise RuntimeError(f"machine {self.name} is not running")
        namespaces = f"/proc/{holder.pid}/ns"
        return [
            "nsenter",
            f"--net={self.path}",
            f"--mount={namespaces}/mnt",
            f"--cgroup={namespaces}/cgroup",
            "--",
        ]

    def start(
        self, name: str, argv: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        """A daemon, which outlives this process. Its words go to `log(name)`."""
        variables = [f"{key}={value}" for key, value in (environment or {}).items()]
        command = [*self.entry(), "env", *variables, *argv]
        with self.log(name).open("ab") as log:
            popen = self._spawn(f"{self.cgroup}/daemons", command, subprocess.DEVNULL, log)
        self._remember(name, popen)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def process(self, name: str) -> Process | None:
        """The daemon of that name; None if it is not running."""
        return Process.load(self.folder / "processes" / name)

    def stop(self, name: str) -> None:
        """End a daemon. Nothing happens if it is not running."""
        process = self.process(name)
        if process is not None:
            process.end(END_SECONDS)

    def _spawn(
        self, cgroup: str, command: Sequence[str], stdout: int, log: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        joins = "".join(f'echo 0 >"{h}/{cgroup}/cgroup.procs"; ' for h in hierarchies())
        return subprocess.Popen(
            ["sh", "-c", f'set -e; {joins}exec "$@"', "join", *command],
            stdin=subprocess.DEVNULL,
            stdout=log if stdout == subprocess.DEVNULL else stdout,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )

    def _remember(self, name: str, popen: subprocess.Popen[bytes]) -> None:
        process = Process.of(popen.pid)
        if process is None:
            raise RuntimeError(f"{name} on {self.name} ended at once: see {self.log(name)}")
        # It is meant to outlive this object, and `Process.alive` reaps it.
        popen.returncode = 0
        process.save(self.folder / "processes" / name)


def _make_cgroup(hierarchy: Path, name: str) -> None:
    """Make it and what is above it, ready for processes."""
    path = hierarchy
    for part in name.split("/"):
        path /= part
        path.mkdir(exist_ok=True)
        for setting in ("cpuset.cpus", "cpuset.mems"):
            # An older Linux starts a cpuset empty, and then nothing can join it.
            given = path / setting
            if (hierarchy / "cgroup.clone_children").exists() and given.exists():
                given.write_text((path.parent / setting).read_text())
