"""In a namespace that forbids everything, the chart's network policies let through what is needed,
and nobody else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cluster.cluster import Cluster
from cluster.pods import Pod
from cluster.policies import policies_enforced, settle
from cluster.probes import PORT, answers, stranger
from cluster.process import wait
from cluster.release import Release, call, everywhere, image, removed, ways

NAMESPACE = "walled"
OTHERS = "others"

ALLOWED = "networkPolicy.enabled=true"

OTHER_PORT = 9999

LISTENING_SECONDS = 30


def policy(name: str, **spec: Any) -> str:
    return json.dumps(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": spec,
        }
    )


@pytest.fixture(scope="module")
def release(own_cluster: Cluster) -> Iterator[Release]:
    found = Release(own_cluster, image(own_cluster), "w", NAMESPACE)
    with policies_enforced(own_cluster), removed(own_cluster, found.name, NAMESPACE):
        own_cluster.kubectl("create", "namespace", NAMESPACE)
        deny = policy("deny", podSelector={}, policyTypes=["Ingress", "Egress"])
        own_cluster.kubectl("apply", "-f", "-", stdin=deny)
        found.set(ALLOWED, "gateway.routingMode=http")
        settle(own_cluster)
        yield found


def test_a_helm_test_is_green(release: Release) -> None:
    assert "pre-flight passed: 3 nodes reached" in release.tested()


@contextmanager
def listening(pod: Pod) -> Iterator[None]:
    """Another port of the pod, which its node can reach, answers."""
    program = [sys.executable, "-m", "http.server", str(OTHER_PORT), "--directory", "/var/empty"]
    with subprocess.Popen(
        [*pod.wires, *program], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as running:
        try:
            curl = ["curl", "-s", "--noproxy", "*", "-o", "/dev/null", "-m", "3"]
            probe = [*curl, "-w", "%{http_code}", f"http://{pod.address}:{OTHER_PORT}/"]
            shown = ["sh", "-c", '"$@" || true', "sh", *probe]
            wait("a port", lambda: pod.node.run(*shown) != "000", LISTENING_SECONDS)
            yield
        finally:
            running.terminate()


def test_a_stranger_reaches_the_gateways_port_and_nothing_else(
    release: Release, own_cluster: Cluster, busybox: str
) -> None:
    """Of another namespace, and one of this that may call whom it likes. The kubelet's probes come
    through: it is the node that asks there."""
    gateway, agents = release.gateway(), release.agents()
    callers = {"matchLabels": {"app": "stranger"}}
    free = policy("free", podSelector=callers, policyTypes=["Egress"], egress=[{}])
    release.kubectl("apply", "-f", "-", stdin=free)
    own_cluster.kubectl("create", "namespace", OTHERS)
    try:
        with (
            stranger(own_cluster, NAMESPACE, busybox) as here,
            stranger(own_cluster, OTHERS, busybox) as elsewhere,
            listening(gateway),
            listening(agents[1]),
        ):
            settle(own_cluster)
            for agent in agents:
                url = f"https://{agent.address}:{PORT}/healthz"
                assert answers(gateway, url)
                assert "healthy" in agent.node.run("curl", "-sk", "--noproxy", "*", "-m", "3", url)
                assert not answers(here, url)
                assert not answers(elsewhere, url)
            for sender in (here, elsewhere):
                assert answers(sender, f"http://{gateway.address}:{PORT}/healthz")
                assert not answers(sender, f"http://{gateway.address}:{OTHER_PORT}/")
                assert not answers(sender, f"http://{agents[1].address}:{OTHER_PORT}/")
            assert not answers(gateway, f"http://{agents[1].address}:{OTHER_PORT}/")
            assert not answers(gateway, f"http://{here.address}:{PORT}/")
    finally:
        own_cluster.kubectl("delete", "namespace", OTHERS, timeout=120)
        release.kubectl("delete", "networkpolicy", "free")


@pytest.mark.parametrize("mode", ["http", "portforward", "exec"])
def test_every_node_answers_over_every_path(
    release: Release, own_cluster: Cluster, mode: str
) -> None:
    release.set(ALLOWED, f"gateway.routingMode={mode}")
    answer = release.inventory(token=release.account_token())
    assert ways(answer) == everywhere(own_cluster, mode), answer["failures"]


def test_without_the_charts_policies_the_diagnosis_names_the_one_that_forbids(
    release: Release, own_cluster: Cluster
) -> None:
    """One that forbids who comes in: without the API server, too, a gateway could read none."""
    deny = policy("deny", podSelector={}, policyTypes=["Ingress"])
    release.kubectl("apply", "-f", "-", stdin=deny)
    release.set("gateway.nodeSelector.kubernetes\\.io/hostname=n1")  # which is who asks it
    settle(own_cluster)
    found = release.ask(call("check_connectivity"), token=release.token())["structuredContent"]
    (cause,) = found["causes"]
    assert cause["code"] == "network-policy", found
    assert cause["nodes"] == own_cluster.nodes
    assert "deny" in json.dumps(cause["evidence"])
    assert found["verdict"] == "degraded"
    answer = release.inventory(token=release.token())
    assert ways(answer) == everywhere(own_cluster, "portforward")
