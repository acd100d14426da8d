"""What is broken in a cluster is named for what it is, and nothing is where nothing is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from cluster import faults
from cluster.cluster import Cluster
from cluster.process import CommandError, wait
from cluster.release import Release, call, image, installed

NAMESPACE = "diagnosis"

N1 = "gateway.nodeSelector.kubernetes\\.io/hostname=n1"
"""The gateway beside n2 in its subnet, and across from n3."""

HEALED_SECONDS = 90

PORT = 8080

CHECK = call("check_connectivity")


@pytest.fixture(scope="module")
def release(own_cluster: Cluster) -> Iterator[Release]:
    with installed(own_cluster, image(own_cluster), "d", NAMESPACE, N1) as found:
        yield found


def diagnosis(release: Release) -> dict[str, Any]:
    found: dict[str, Any] = release.ask(CHECK, token=release.token())["structuredContent"]
    return found


def healthy(release: Release) -> bool:
    found = diagnosis(release)
    return found["verdict"] == "healthy" and not found["causes"]


@pytest.fixture
def before(release: Release) -> Iterator[None]:
    wait("a healthy diagnosis", lambda: healthy(release), HEALED_SECONDS)
    yield
    wait("a healthy diagnosis again", lambda: healthy(release), HEALED_SECONDS)


def isolated(release: Release) -> AbstractContextManager[None]:
    labels = dict(pair.split("=") for pair in release.selector("agent").split(","))
    return faults.isolated(release.cluster, NAMESPACE, release.agents(), labels, PORT)


def misdirected(release: Release) -> AbstractContextManager[None]:
    _, second, third = release.agents()
    return faults.misdirected(release.gateway(), second.address, third.address)


@contextmanager
def revoked(release: Release) -> Iterator[None]:
    role = f"{release.fullname}-gateway"
    with faults.revoked(release.cluster, NAMESPACE, role, ["pods/exec"]):
        release.restart_gateway()  # a stream that is open stays so
        yield


Fault = Callable[[Release], AbstractContextManager[Any]]

CAUSES: dict[str, tuple[Fault, set[str]]] = {
    "crosssubnet-source-check": (lambda r: faults.source_destination_check(r.cluster), {"n2"}),
    "network-policy": (isolated, {"n1", "n2", "n3"}),
    "overlay-blocked": (lambda r: faults.overlay_blocked(r.cluster), {"n3"}),
    "mtu": (lambda r: faults.black_hole(r.cluster, "n3", 1400, overlay=True), {"n3"}),
    "agent-down": (lambda r: faults.paused(r.agents()[1]), {"n2"}),
    "agent-on-loopback": (lambda r: faults.loopback_only(r.agents()[1], PORT), {"n2"}),
    "stale-address": (misdirected, {"n2"}),
    "kubelet-unreachable": (lambda r: faults.undialled(r.cluster, "n2"), {"n2"}),
    "stream-rbac": (revoked, {"n1", "n2", "n3"}),
}
"""What is broken, and the nodes that the cause must name."""


VERDICTS = {"agent-down": "broken", "kubelet-unreachable": "healthy", "stream-rbac": "healthy"}
"""Where it is not that a fallback carries: the last two ail fallbacks alone."""


@pytest.mark.parametrize("code", CAUSES)
@pytest.mark.usefixtures("before")
def test_a_cause_is_named(release: Release, code: str) -> None:
    fault, nodes = CAUSES[code]
    with fault(release):
        found = diagnosis(release)
        assert [cause["code"] for cause in found["causes"]] == [code], found
        (cause,) = found["causes"]
        assert set(cause["nodes"]) == nodes
        assert cause["evidence"]
        assert cause["fix"]
        assert found["verdict"] == VERDICTS.get(code, "degraded")


@pytest.mark.usefixtures("before")
def test_an_mtu_is_named_where_not_even_the_handshake_comes_through(release: Release) -> None:
    """As with long chains of certificates, or keys that are safe from quantum computers."""
    with faults.black_hole(release.cluster, "n3", 700, overlay=True):
        (cause,) = diagnosis(release)["causes"]
        assert (cause["code"], cause["nodes"]) == ("mtu", ["n3"])


@pytest.mark.usefixtures("before")
def test_vxlan_everywhere_mends_what_the_diagnosis_names(release: Release) -> None:
    with faults.source_destination_check(release.cluster):
        (cause,) = diagnosis(release)["causes"]
        assert any("vxlanMode" in line for line in cause["fix"])
        with faults.tunnelled(release.cluster):
            wait("a healthy diagnosis", lambda: healthy(release), HEALED_SECONDS)


@pytest.mark.usefixtures("before")
def test_a_helm_test_passes_and_fails_by_whether_every_node_is_reached(release: Release) -> None:
    assert "pre-flight passed: 3 nodes reached" in release.tested()
    with (
        faults.source_destination_check(release.cluster),
        faults.undialled(release.cluster, "n2"),
        pytest.raises(CommandError) as failed,
    ):
        release.tested()
    (said,) = failed.value.__notes__
    assert "pre-flight failed: no path leads to 1 of 3 nodes" in said
    assert "vxlanMode" in said


def test_a_person_is_told_the_same_in_a_terminal(release: Release) -> None:
    """`mcp-gpu doctor` from outside: pod addresses cannot be reached there, streams can."""
    command = [sys.executable, "-m", "mcp_gpu", "doctor", "--json"]
    command += ["--kubeconfig", str(release.cluster.kubeconfig), "--namespace", NAMESPACE]
    environment = os.environ | release.cluster.environment()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    found = json.loads(done.stdout)
    assert found["coverage"]["nodes_known"] == len(release.cluster.nodes), done.stderr
