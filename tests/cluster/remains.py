"""What a cluster leaves on the machine: how to count it, and how to take it away.

Nothing here trusts a record of what was made, since whoever made it may have been killed before
writing it down: all of it carries the cluster's prefix, and is looked for.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from cluster.binaries import cache
from cluster.machine import hierarchies, members
from cluster.network import links
from cluster.plan import Plan
from cluster.process import Process, kill, run, wait

__all__ = ["clean", "remains"]

CLEAN_SECONDS = 60
"""Bound on each step; the kernel takes a second to free a network namespace."""


def remains(plan: Plan) -> dict[str, list[str]]:
    """Kind of thing to what is there of it. All lists are empty after a whole tear-down."""
    return {
        "processes": [_name(process) for process in _processes(plan)],
        "mounts": _mounts(plan),
        "network namespaces": [str(path) for path in _namespaces(plan)],
        "links": links(plan),
        "cgroups": [str(path) for path in _cgroups(plan)],
        "files": [str(plan.folder)] if plan.folder.exists() else [],
    }


def clean(plan: Plan) -> None:
    """Take all of it away.

    Raises:
        TimeoutError: something stays; the message says what.
    """
    while processes := _processes(plan):
        # A process may fork while the others are being killed.
        kill(processes, CLEAN_SECONDS)
    wait("end of the mounts", lambda: _unmounted(plan), CLEAN_SECONDS)
    for namespace in _namespaces(plan):
        run("ip", "netns", "delete", namespace.name)
    for link in links(plan):
        run("ip", "link", "delete", link)
    wait("end of the cgroups", lambda: _removed(plan), CLEAN_SECONDS)
    shutil.rmtree(plan.folder, ignore_errors=True)
    left = {kind: things for kind, things in remains(plan).items() if things}
    if left:
        raise TimeoutError(f"{plan.prefix} left behind: {left}")


def _processes(plan: Plan) -> list[Process]:
    """Those in its cgroups, those that a test sent into its network, and commands of ours that
    speak to its API server; not a shell of a person who does."""
    found = set(members(plan.prefix))
    inodes = {path.stat().st_ino for path in _namespaces(plan)}
    mark = f"KUBECONFIG={plan.folder}/".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            ours = (entry / "ns" / "net").stat().st_ino in inodes or (
                (entry / "exe").readlink().is_relative_to(cache())
                and mark in (entry / "environ").read_bytes()
            )
        except OSError:  # gone, or the kernel's own
            continue
        if ours and (process := Process.of(int(entry.name))):
            found.add(process)
    return sorted(found, key=lambda process: process.pid)


def _name(process: Process) -> str:
    try:
        words = Path(f"/proc/{process.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        words = ""
    return f"{process.pid} {words.strip()[:100]}"


def _namespaces(plan: Plan) -> list[Path]:
    return sorted(Path("/run/netns").glob(f"{plan.prefix}-*"))


def _mounts(plan: Plan) -> list[str]:
    """Mounted from or onto its files, other than its network namespaces."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if f"{plan.folder}/" in line]


def _unmounted(plan: Plan) -> bool:
    for mount in _mounts(plan):
        run("umount", "--lazy", mount)
    return not _mounts(plan)


def _cgroups(plan: Plan) -> list[Path]:
    tops = [hierarchy / plan.prefix for hierarchy in hierarchies()]
    return [path for top in tops if top.exists() for path in (top, *top.rglob("*/"))]


def _removed(plan: Plan) -> bool:
    """The kernel may take a moment to see that a cgroup is empty."""
    for path in reversed(_cgroups(plan)):
        try:
            path.rmdir()
        except OSError:
            pass
    return not _cgroups(plan)
