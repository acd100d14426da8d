"""Those who count a node's GPUs disagree, and each disagreement is named for what it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from cluster.cluster import Cluster
from cluster.deviceplugin import DevicePlugin, device_plugin
from cluster.process import wait
from cluster.release import Release, call, image, installed
from cluster.resourcedriver import published_gpus, resource_driver
from cluster.simulation import Simulation, gpus

TOOL = "describe_gpu_node"

NAMESPACE = "counts"
NODE = "n1"
"""Where a device plugin hands out GPUs."""
CLAIMED = "n2"
"""Where a driver for Dynamic Resource Allocation does."""

GPU = "nvidia.com/gpu"
LABEL = "nvidia.com/gpu.count"
COUNT = 4

H100 = f'profile = "h100"\ngpus = {COUNT}\nload = 0.0'
SIMULATION = Simulation(dict.fromkeys(("n1", "n2", "n3"), H100))

TOLD_SECONDS = 60
"""Bound for agents and the API server to have seen what has changed."""


@dataclass(frozen=True)
class Place:
    """What is counted, and by whom."""

    release: Release
    plugin: DevicePlugin
    boards: dict[str, list[dict[str, Any]]]

    def disagreements(self, node: str) -> list[str]:
        """The codes of those that are told of a node."""
        return [each["code"] for each in self.described(node)["disagreements"]]

    def described(self, node: str) -> dict[str, Any]:
        request = call(TOOL, node=node)
        answer = self.release.ask(request, token=self.release.token())
        found: dict[str, Any] = answer["structuredContent"]
        return found


@pytest.fixture(scope="module")
def place(own_cluster: Cluster) -> Iterator[Place]:
    built = image(own_cluster)
    with ExitStack() as stack:
        release = stack.enter_context(
            installed(own_cluster, built, "c", NAMESPACE, SIMULATION.value)
        )
        boards = gpus(release)
        ids = [board["uuid"] for board in boards[NODE]]
        plugin = stack.enter_context(device_plugin(own_cluster, NODE, GPU, ids))
        stack.enter_context(labelled(own_cluster, str(COUNT)))
        yield Place(release, plugin, boards)


@contextmanager
def labelled(cluster: Cluster, count: str) -> Iterator[None]:
    """As GPU feature discovery does."""
    node = ["label", "--overwrite", "node", NODE]
    before = json.loads(cluster.kubectl("get", "node", NODE, "-o", "json"))["metadata"]["labels"]
    cluster.kubectl(*node, f"{LABEL}={count}")
    try:
        yield
    finally:
        cluster.kubectl(*node, f"{LABEL}={before[LABEL]}" if LABEL in before else f"{LABEL}-")


@contextmanager
def unhealthy(place: Place) -> Iterator[None]:
    """The plugin has marked a device at an Xid, and never looks at it again."""
    place.plugin.mark(place.plugin.ids[:1])
    try:
        yield
    finally:
        place.plugin.mark([])


@contextmanager
def absent(place: Place) -> Iterator[None]:
    """The node has been started again, and the plugin has not."""
    node = place.release.cluster.node(NODE)
    place.plugin.stop()
    try:
        node.restart("kubelet")
        yield
    finally:
        place.plugin.start()


@contextmanager
def stale(place: Place) -> Iterator[None]:
    """The driver has published a board that was replaced since."""
    devices = published_gpus(place.boards[CLAIMED])
    devices["gpu-0"]["uuid"] = "GPU-00000000-0000-4000-8000-000000000000"
    with resource_driver(place.release.cluster, CLAIMED, devices):
        yield


def faulty(fault: str) -> Callable[[Place], AbstractContextManager[None]]:
    text = f"[[nodes.faults]]\n{fault}\n"
    return lambda place: SIMULATION.faults(place.release, {NODE: text})


Staged = Callable[[Place], AbstractContextManager[None]]

DISAGREEMENTS: dict[str, tuple[str, Staged]] = {
    "fallen_off_bus": (NODE, faulty('kind = "lost"\ngpu = 1')),
    "device_never_recovered": (NODE, unhealthy),
    "gfd_label_stale": (NODE, lambda place: labelled(place.release.cluster, "8")),
    "driver_not_loaded": (NODE, faulty('kind = "driver_not_loaded"')),
    "device_plugin_absent": (NODE, absent),
    "resource_slices_stale": (CLAIMED, stale),
}
"""Code to the node where it is staged, and how."""


@pytest.mark.parametrize("code", DISAGREEMENTS)
def test_a_disagreement_is_named(place: Place, code: str) -> None:
    node, staged = DISAGREEMENTS[code]

    def agreed() -> bool:
        return not place.disagreements(NODE)

    wait(f"counts of {NODE} that agree", agreed, TOLD_SECONDS)
    with staged(place):
        wait(f"{code} told", lambda: code in place.disagreements(node), TOLD_SECONDS)
        found = place.described(node)
    (told,) = [each for each in found["disagreements"] if each["code"] == code]
    print(f"{code}: {told['title']} {told['cause']}")
    assert [each["code"] for each in found["disagreements"]] == [code]
    assert told["evidence"]
    assert told["fix"]
    counts = {each["source"]: each["count"] for each in found["counts"]}
    print(counts)


def test_a_plugin_that_has_just_ended_is_not_taken_for_one_that_marks_devices(
    place: Place,
) -> None:
    """For five minutes the kubelet keeps its devices, and calls all of them unhealthy."""
    wait(f"counts of {NODE} that agree", lambda: not place.disagreements(NODE), TOLD_SECONDS)
    place.plugin.stop()
    try:
        assert place.disagreements(NODE) == ["device_plugin_absent"]
    finally:
        place.plugin.start()


def test_gpus_that_are_claimed_are_counted_by_their_slices(place: Place) -> None:
    with resource_driver(place.release.cluster, CLAIMED, published_gpus(place.boards[CLAIMED])):
        wait("slices that agree", lambda: not place.disagreements(CLAIMED), TOLD_SECONDS)
