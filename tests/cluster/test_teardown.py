"""Nothing is left behind: after a tear-down, and after nobody was there to do one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.binaries import cache, missing
from cluster.cluster import ELSEWHERE, Cluster, alone, take_down
from cluster.controlplane import ControlPlane
from cluster.machine import KERNEL_SETTINGS
from cluster.plan import Plan
from cluster.process import run, wait
from cluster.remains import remains

SIDE = 15
"""The number of a second cluster, beside the one that the other tests use."""

ANY_CLUSTER = re.compile(rf"dev mcpgpu(?!{SIDE}\b)\d+")
"""Other clusters, with which this has nothing to do."""

UP_SECONDS = 300
"""Bound for what is to be killed to have come that far."""


@pytest.fixture
def side() -> Iterator[Plan]:
    if reason := missing():
        pytest.skip(reason)
    if ELSEWHERE in os.environ:
        pytest.skip(f"{ELSEWHERE} names a cluster elsewhere: none is made here")
    plan = Plan(SIDE)
    with alone(plan):
        take_down(plan)
        yield plan
        take_down(plan)


def nothing() -> dict[str, list[str]]:
    kinds = ("processes", "mounts", "network namespaces", "links", "cgroups", "files")
    return {kind: [] for kind in kinds}


def surroundings() -> dict[str, str]:
    """What of the machine itself a cluster could have changed, other than what bears its name."""
    seen = {name: (Path("/proc/sys") / name).read_text() for name in KERNEL_SETTINGS}
    routes = run("ip", "route").splitlines()
    seen["routes"] = "\n".join(route for route in routes if not ANY_CLUSTER.search(route))
    seen["rules"] = run("nft", "list", "ruleset")
    seen["forwarding"] = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    return seen


def begin(plan: Plan) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "cluster", "up"],
        env=os.environ | {"MCP_GPU_CLUSTER": str(plan.index)},
        cwd=Path(__file__).parents[1],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_a_cluster_taken_down_leaves_the_machine_as_it_was(side: Plan) -> None:
    before = surroundings()
    cluster = Cluster.up(side, keep=False)
    assert len(cluster.nodes) == 3
    assert all(remains(side)[kind] for kind in nothing() if kind != "mounts")
    cluster.down()
    assert remains(side) == nothing()
    assert surroundings() == before


@pytest.mark.parametrize("stage", ["machines", "control plane", "pods"])
def test_a_bring_up_killed_in_the_middle_is_cleared_away(side: Plan, stage: str) -> None:
    before = surroundings()
    reached = {
        "machines": lambda: (side.folder / "n1" / "sysctl").exists(),
        "control plane": lambda: (side.folder / "cp" / "processes" / "kube-apiserver").exists(),
        "pods": lambda: any("containerd-shim" in name for name in remains(side)["processes"]),
    }
    with begin(side) as bringing_up:
        try:
            wait(f"the stage {stage}", reached[stage], UP_SECONDS)
            assert bringing_up.poll() is None
        finally:
            bringing_up.kill()
    assert any(remains(side).values())
    take_down(side)
    assert remains(side) == nothing()
    assert surroundings() == before


def test_a_cluster_whose_owner_was_killed_is_not_taken_for_a_running_one(side: Plan) -> None:
    script = (
        "from cluster.cluster import Cluster; from cluster.plan import Plan\n"
        f"import os, signal; Cluster.up(Plan({SIDE}), keep=False)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1], timeout=600)
    assert remains(side)["processes"] != []
    assert Cluster.running(side) is None
    second = Cluster.up(side, keep=True)
    assert Cluster.running(side) is not None
    assert len(second.nodes) == 3


def test_a_bring_up_that_fails_takes_itself_down_and_keeps_its_logs(
    side: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ControlPlane, "_kube_apiserver", lambda self: ["--no-such-flag"])
    with pytest.raises(RuntimeError, match="the API server has ended"):
        Cluster.up(side, keep=False)
    assert remains(side) == nothing()
    log = cache() / f"{side.prefix}-failed" / "cp" / "kube-apiserver.log"
    assert "--no-such-flag" in log.read_text()
    shutil.rmtree(log.parents[1])
