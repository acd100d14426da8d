"""Agents and gateways become new ones and old ones again, and whoever calls notices nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from cluster.callers import calling
from cluster.chronicle import chronicled
from cluster.cluster import Cluster
from cluster.images import Image
from cluster.process import wait
from cluster.release import Release, call, image, installed
from cluster.successor import ARGUMENT, FIELD, successor

NAMESPACE = "upgrade"

DEFAULTS = (
    "gateway.replicas=2",
    "agent.updateStrategy.rollingUpdate.maxSurge=1",
)
"""As the chart has them, and as tests elsewhere do not."""

HELD = ("agent.updateStrategy.type=OnDelete", "agent.updateStrategy.rollingUpdate=null")

MACHINES = ("n1", "n3")
"""Where clients call from: each with a kube-proxy of its own."""


@pytest.fixture
def release(own_cluster: Cluster) -> Iterator[Release]:
    with installed(own_cluster, image(own_cluster), "gpu", NAMESPACE, *DEFAULTS) as found:
        yield found


@pytest.fixture
def new(release: Release) -> Image:
    made = successor(release.image)
    release.cluster.load_image(made)
    return made


def echoed(release: Release) -> set[str | None]:
    """What the nodes give back of the new argument, which is offered."""
    request = call("get_gpu_inventory", **{ARGUMENT: "given"})
    answer = release.ask(request, token=release.token())["structuredContent"]
    assert [node["node"] for node in answer["nodes"]] == release.cluster.nodes
    return {node.get(FIELD) for node in answer["nodes"]}


def versions(release: Release, component: str) -> set[str]:
    """The images of the pods that there are, those on their way out too."""
    query = ["get", "pods", "-l", release.selector(component), "-o", "json"]
    items = json.loads(release.kubectl(*query))["items"]
    return {item["spec"]["containers"][0]["image"] for item in items}


def settled(release: Release, component: str, at: Image) -> bool:
    return {name.rpartition(":")[2] for name in versions(release, component)} == {
        at.name.rpartition(":")[2]
    }


def test_upgrades_and_a_rollback_cost_no_call_and_no_node(release: Release, new: Image) -> None:
    old, gateways = release.image, f"deployment/{release.fullname}-gateway"
    with chronicled(release.cluster, NAMESPACE) as told, calling(release, MACHINES) as seen:
        # Agents first.
        release.kubectl("rollout", "pause", gateways)
        release.image = new
        release.upgrade(*DEFAULTS)
        release.rolled_out("daemonset")
        wait("new agents alone", lambda: settled(release, "agent", new), 120)
        assert settled(release, "gateway", old)
        release.kubectl("rollout", "resume", gateways)
        release.ready()
        assert echoed(release) == {"given"}

        # All back at once.
        release.cluster.helm("rollback", release.name, "1", "--namespace", NAMESPACE)
        release.ready()
        wait("old agents alone", lambda: settled(release, "agent", old), 120)
        assert settled(release, "gateway", old)

        # Gateways first.
        release.upgrade(*DEFAULTS, *HELD)
        release.rolled_out("deployment")
        wait("new gateways alone", lambda: settled(release, "gateway", new), 120)
        assert settled(release, "agent", old)
        assert echoed(release) == {""}
        release.upgrade(*DEFAULTS)
        release.ready()
        wait("new agents alone", lambda: settled(release, "agent", new), 120)
        assert echoed(release) == {"given"}
    print(told)
    print(seen)
    assert not seen.failures, seen
    # Every client has called all along, and some with the new argument as soon as they could.
    assert min(seen.calls.values()) > 100, seen
    assert seen.calls[ARGUMENT], seen
