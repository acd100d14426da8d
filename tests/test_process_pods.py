"""From a process id to its pod: lines of cgroups as runtimes write them, and real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from mcp_gpu.node import process_pods
from mcp_gpu.node.process_pods import Place, PodProcess, ProcessPods, cgroup_place

UID = "0b9b7c34-3a5e-4f0e-8a51-0ef1c5d8a001"
UNDER = UID.replace("-", "_")
ID = "c695213ac7e142abfca1a1264397a1f39184f8168f34c0452340325d8c4b233e"
NODE_ID = "9" * 64
STATIC = "5f1d7e2c9a8b4d6e3f0a1b2c3d4e5f60"

SYSTEMD = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDER}.slice"

PLACES = {
    "v2, systemd, containerd": (f"0::{SYSTEMD}/cri-containerd-{ID}.scope", UID, ID),
    "v2, systemd, CRI-O": (f"0::{SYSTEMD}/crio-{ID}.scope", UID, ID),
    "v2, systemd, CRI-O, a folder below": (f"0::{SYSTEMD}/crio-{ID}.scope/container", UID, ID),
    "v2, systemd, docker": (f"0::{SYSTEMD}/docker-{ID}.scope", UID, ID),
    "v2, systemd, guaranteed": (
        f"0::/kubepods.slice/kubepods-pod{UNDER}.slice/cri-containerd-{ID}.scope",
        UID,
        ID,
    ),
    "v2, systemd inside of the container": (
        f"0::{SYSTEMD}/cri-containerd-{ID}.scope/init.scope",
        UID,
        ID,
    ),
    "v2, cgroupfs": (f"0::/kubepods/besteffort/pod{UID}/{ID}", UID, ID),
    "v2, cgroupfs, containerd told systemd": (
        f"0::/kubepods-burstable-pod{UNDER}.slice:cri-containerd:{ID}",
        UID,
        ID,
    ),
    "v2, a cgroup namespace of the reader's own": (
        f"0::/../../kubepods-burstable-pod{UNDER}.slice/cri-containerd-{ID}.scope",
        UID,
        ID,
    ),
    "v2, a static pod": (f"0::/kubepods/burstable/pod{STATIC}/{ID}", STATIC, ID),
    "v2, a kubelet with slices of its own, on a node that is a container": (
        f"0::/docker/{NODE_ID}/kubelet.slice/kubelet-kubepods.slice/"
        f"kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{UNDER}.slice/"
        f"cri-containerd-{ID}.scope",
        UID,
        ID,
    ),
    "v2, a container in the container": (
        f"0::{SYSTEMD}/cri-containerd-{ID}.scope/docker/{NODE_ID}",
        UID,
        ID,
    ),
    "v2, the pod itself": (f"0::{SYSTEMD}", UID, None),
    "v1, systemd, containerd": (
        f"12:pids:{SYSTEMD}/cri-containerd-{ID}.scope\n"
        f"11:name=systemd:{SYSTEMD}/cri-containerd-{ID}.scope\n0::/",
        UID,
        ID,
    ),
    "v1, cgroupfs, docker": (
        f"4:cpu,cpuacct:/kubepods/burstable/pod{UID}/{ID}\n1:name=systemd:/",
        UID,
        ID,
    ),
    "v1, cgroupfs below systemd's services": (
        f"3:devices:/system.slice/containerd.service/kubepods-burstable-pod{UNDER}.slice:"
        f"cri-containerd:{ID}",
        UID,
        ID,
    ),
}

CONTAINERS = {
    "docker": f"0::/system.slice/docker-{ID}.scope",
    "docker, v1": f"5:memory:/docker/{ID}",
    "podman": f"0::/machine.slice/libpod-{ID}.scope/container",
}


@pytest.mark.parametrize("layout", list(PLACES))
def test_where_cgroups_put_a_container(layout: str) -> None:
    lines, pod_uid, container_id = PLACES[layout]
    expected = Place(pod_uid, container_id, podless=False)
    assert cgroup_place(lines + "\n", whole=False) == expected
    assert cgroup_place(lines + "\n", whole=True) == expected


@pytest.mark.parametrize("runtime", list(CONTAINERS))
def test_a_container_without_a_pod_is_of_none(runtime: str) -> None:
    lines = CONTAINERS[runtime]
    assert cgroup_place(lines, whole=True) == Place(None, ID, podless=True)
    # From a cgroup namespace below, it might be of the reader's own pod.
    assert cgroup_place(lines, whole=False).podless is None


def test_a_kubelet_without_cgroups_of_pods_leaves_the_pod_unknown() -> None:
    """As with cgroupsPerQOS=false: containerd puts the container into the folder of its namespace,
    and that it is of no pod would be a lie."""
    found = cgroup_place(f"9:pids:/k8s.io/{ID}\n0::/k8s.io/{ID}\n", whole=True)
    assert (found.pod_uid, found.container_id, found.podless) == (None, ID, None)
    assert "cgroupsPerQOS" in found.why


@pytest.mark.parametrize(
    "lines",
    [
        "0::/user.slice/user-1000.slice/session-3.scope",
        "0::/system.slice/nvidia-persistenced.service",
        "9:name=systemd:/init.scope\n0::/init.scope",
        "0::/../../system.slice/sshd.service",
        f"0::/system.slice/pod{UID}extra.service",
        f"0::/system.slice/xcri-containerd-{ID[:40]}.scope",
    ],
)
def test_a_process_of_the_node_is_of_no_container(lines: str) -> None:
    assert cgroup_place(lines, whole=False) == Place(podless=True)


def test_what_cannot_be_told_is_not_the_node_s_own() -> None:
    assert cgroup_place("0::/\n", whole=True) == Place(podless=True)
    assert cgroup_place("0::/\n", whole=False) == Place(
        why="it is in the agent's own pod or container"
    )
    assert cgroup_place("0::/..\n", whole=False).podless is None
    sibling = cgroup_place(f"0::/../cri-containerd-{ID}.scope", whole=False)
    assert (sibling.container_id, sibling.podless) == (ID, None)
    assert cgroup_place("", whole=True).why == "its cgroup cannot be read"
    assert cgroup_place("nonsense\n", whole=True).podless is None


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with other tests is no /proc that blocks."""
    monkeypatch.setattr(process_pods, "LOOK_SECONDS", 20.0)


# --- real processes --------------------------------------------------------------------------


@contextmanager
def running(*argv: str, title: str | None = None) -> Iterator[int]:
    """A real process that says when it has begun, and ends with the block."""
    code = "import sys; print(flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [title or sys.executable, "-c", code, *argv],
        executable=sys.executable,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdout.readline()
        yield process.pid
    finally:
        process.communicate()


async def look(pid: int, read_at: float | None = None, **options: Path) -> PodProcess:
    when = time.time() if read_at is None else read_at
    with anyio.fail_after(20):
        return (await ProcessPods(**options).look_up([pid], when))[pid]


async def test_a_real_process_is_told_without_its_arguments() -> None:
    with running("--password", "hunter2") as pid:
        found = await look(pid)
    assert found.command is not None
    assert found.command.startswith("python")
    assert "hunter2" not in repr(found)
    assert found.user_id == os.geteuid()
    assert found.started_at is not None
    assert abs(found.started_at - time.time()) < 60


@pytest.mark.parametrize(
    ("title", "command"),
    [
        ("/opt/bin/train --token hunter2", "train (python"),
        ("token=hunter2", "python"),
        ("", "python"),
        ("x" * 300, "x" * process_pods._COMMAND_CHARS),
        ("\x1b[31mred", "?[31mred (python"),
    ],
)
async def test_what_a_program_writes_over_its_command_line_gives_nothing_away(
    title: str, command: str
) -> None:
    with running("--password", "hunter2", title=title) as pid:
        # The kernel's name is of the file, which is Python's.
        found = await look(pid)
    assert found.command is not None
    assert found.command.startswith(command)
    assert "hunter2" not in repr(found)
    assert found.command.isprintable()
    assert len(found.command) <= process_pods._COMMAND_CHARS


async def test_a_process_that_has_ended_is_nobody() -> None:
    with running() as pid:
        pass
    assert await look(pid) == PodProcess(pid, why="the process has ended")


async def test_a_number_that_is_another_s_by_now_is_not_mistaken() -> None:
    with running() as pid:
        found = await look(pid, read_at=time.time() - 3600)
    assert found == PodProcess(pid, why="the process has ended, and its number is another's")


async def test_one_that_ends_while_it_is_looked_at_is_nobody(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (a) b) S " + "0 " * 30)
    assert await look(7, proc=tmp_path) == PodProcess(7, why="the process has ended")


async def test_a_proc_that_blocks_holds_nobody_up_and_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a process that holds its own address space: here a FIFO that nobody writes."""
    monkeypatch.setattr(process_pods, "LOOK_SECONDS", 0.05)
    (tmp_path / "7").mkdir()
    os.mkfifo(tmp_path / "7" / "stat")
    pods = ProcessPods(tmp_path)
    slow = {7: PodProcess(7, why="/proc did not answer in time")}
    with anyio.fail_after(20):
        assert await pods.look_up([7], 0.0) == slow
        assert await pods.look_up([7], 0.0) == slow
        # Opened by somebody it lets the thread go on, which finds the process gone.
        writing = os.open(tmp_path / "7" / "stat", os.O_WRONLY)
        (tmp_path / "7" / "stat").unlink()
        os.close(writing)
        while (found := await pods.look_up([7], 0.0)) == slow:
            await anyio.lowlevel.checkpoint()
    assert found == {7: PodProcess(7, why="the process has ended")}


def invented(proc: Path, pid: int, *, state: str = "S", hangs: bool = False) -> None:
    """A process of a pod below another /proc; one that hangs does at its command line."""
    folder = proc / str(pid)
    folder.mkdir()
    (folder / "stat").write_text(f"{pid} (x) {state} " + "0 " * 30)
    (folder / "cgroup").write_text(f"0::/kubepods/pod{UID}/{ID}\n")
    (folder / "comm").write_text("train\n")
    (folder / "status").write_text("Uid:\t0\n")
    if hangs:
        os.mkfifo(folder / "cmdline")
    else:
        (folder / "cmdline").write_text("/usr/bin/trainer\0")


async def test_one_process_that_hangs_keeps_no_other_from_being_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_pods, "LOOK_SECONDS", 0.2)
    invented(tmp_path, 7, hangs=True)
    invented(tmp_path, 8)
    pods = ProcessPods(tmp_path)
    with anyio.fail_after(20):
        first = await pods.look_up([7, 8], 0.0)
        monkeypatch.setattr(process_pods, "LOOK_SECONDS", 60.0)
        second = await pods.look_up([7, 8], 0.0)
    assert (first[7].pod_uid, first[7].command) == (UID, "train")
    assert (second[7].pod_uid, second[7].command) == (UID, "train")
    assert (second[8].pod_uid, second[8].command) == (UID, "trainer")
    with (tmp_path / "7" / "cmdline").open("w"):
        pass  # lets the thread end


async def test_a_process_in_the_kernel_s_hands_is_not_asked_for_its_memory(tmp_path: Path) -> None:
    invented(tmp_path, 7, state="D", hangs=True)
    found = await look(7, proc=tmp_path)
    assert (found.pod_uid, found.command, found.why) == (UID, "train", "")


NAMESPACED = """
import json, anyio, os, time
from mcp_gpu.node.process_pods import ProcessPods
async def main():
    pods = ProcessPods()
    print(json.dumps([pods.blind(), os.getpid()]))
anyio.run(main)
"""


async def test_in_a_process_namespace_of_its_own_an_agent_knows_that_it_is_blind() -> None:
    unshared = ["unshare", "--pid", "--fork", "--mount-proc"]
    if os.geteuid() != 0:
        unshared += ["--user", "--map-root-user"]
    try:
        tried = await anyio.run_process([*unshared, "true"], check=False)
    except FileNotFoundError:
        pytest.skip("no unshare on this machine")
    if tried.returncode != 0:
        pytest.skip(f"no namespaces here: {tried.stderr.decode().strip()}")
    with anyio.fail_after(60):
        done = await anyio.run_process([*unshared, sys.executable, "-c", NAMESPACED])
    blind, pid = json.loads(done.stdout)
    assert blind == "a process namespace of its own: other pods' processes are not seen"
    assert pid < 10  # its numbers are not the node's
