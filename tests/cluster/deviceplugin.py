"""A device plugin at a node's real kubelet, whose devices are pretended."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster.cluster import Cluster
from cluster.node import Node
from cluster.process import wait

__all__ = ["DevicePlugin", "device_plugin", "given_to"]

TOLD_SECONDS = 60
"""Bound for the API server to know: a kubelet tells it of its devices every two seconds here."""

GIVEN = "NVIDIA_VISIBLE_DEVICES"
"""The variable in which a container finds what its plugin was asked to give it."""


class DevicePlugin:
    """One resource of one node. Its process registers again with each kubelet that starts."""

    def __init__(self, cluster: Cluster, node: Node, resource: str, ids: Sequence[str]) -> None:
        self.cluster = cluster
        self.node = node
        self.resource = resource
        self.ids = tuple(ids)
        self._registrations = 0
        self._name = f"plugin-{resource.replace('/', '-')}"
        self._file = node.folder / f"{self._name}.json"

    def start(self) -> None:
        """All devices healthy; returns when they can be allocated."""
        self._tell(self.ids)
        self.node.log(self._name).unlink(missing_ok=True)
        self._registrations = 0
        program = [str(self.node.binaries / "gpus")]
        self.node.start(
            self._name, [*program, f"--resource={self.resource}", f"--devices={self._file}"]
        )
        self.wait_registered()
        self.wait_allocatable(len(self.ids))

    def stop(self) -> None:
        """Without its plugin nothing of the resource can be allocated; it stays known."""
        self.node.stop(self._name)
        self.wait_allocatable(0)

    def mark(self, unhealthy: Sequence[str]) -> None:
        """These are unhealthy from now on, and no others."""
        healthy = [each for each in self.ids if each not in unhealthy]
        self._tell(healthy)
        self.wait_allocatable(len(healthy))

    def wait_registered(self) -> None:
        """Until it has registered once more than it had before, as after a start of the kubelet's.

        Raises:
            TimeoutError: it does not.
        """

        def told() -> int:
            log = self.node.log(self._name)
            return log.read_text().count("registered with") if log.exists() else 0

        what = f"{self.resource} registered on {self.node.name} (see {self.node.log(self._name)})"
        wait(what, lambda: told() > self._registrations, TOLD_SECONDS)
        self._registrations = told()

    def wait_allocatable(self, count: int) -> None:
        """Until the API server knows that so many can be allocated.

        Raises:
            TimeoutError: it does not.
        """
        what = f"{count} {self.resource} on {self.node.name} (see {self.node.log(self._name)})"
        wait(what, lambda: self.allocatable() == count, TOLD_SECONDS)

    def allocatable(self) -> int:
        """By the API server's word."""
        query = ["get", "node", self.node.name, "-o", "json"]
        status: Mapping[str, Mapping[str, str]] = json.loads(self.cluster.kubectl(*query))["status"]
        return int(status["allocatable"].get(self.resource, "0"))

    def _tell(self, healthy: Sequence[str]) -> None:
        states = {each: "Healthy" if each in healthy else "Unhealthy" for each in self.ids}
        unfinished = self._file.with_suffix(".new")
        unfinished.write_text(json.dumps(states))
        unfinished.rename(self._file)


@contextmanager
def device_plugin(
    cluster: Cluster, node: str, resource: str, ids: Sequence[str]
) -> Iterator[DevicePlugin]:
    """A plugin of that node within the block."""
    plugin = DevicePlugin(cluster, cluster.node(node), resource, ids)
    try:
        plugin.start()
        yield plugin
    finally:
        plugin.stop()


def given_to(pid: int) -> list[str]:
    """The devices that a container was given, by the environment of a process of it."""
    variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    found = [line.partition("=")[2] for line in variables if line.startswith(f"{GIVEN}=")]
    return sorted(",".join(found).split(",")) if found else []
