"""A driver for Dynamic Resource Allocation at a node's real kubelet, whose GPUs are pretended."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cluster.cluster import Cluster
from cluster.node import Node
from cluster.process import wait

__all__ = ["DRIVER", "ResourceDriver", "published_gpus", "resource_driver"]

DRIVER = "gpu.nvidia.com"

DEVICE_CLASS = {
    "apiVersion": "resource.k8s.io/v1",
    "kind": "DeviceClass",
    "metadata": {"name": DRIVER},
    "spec": {"selectors": [{"cel": {"expression": f"device.driver == '{DRIVER}'"}}]},
}

PUBLISHED_SECONDS = 60


def published_gpus(boards: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """GPUs of an agent's inventory as NVIDIA's driver publishes them: name to attributes."""
    return {
        f"gpu-{board['index']}": {
            "uuid": board["uuid"],
            "type": "gpu",
            "productName": board["name"],
        }
        for board in boards
    }


class ResourceDriver:
    """NVIDIA's name, one pool with the name of the node, and devices as they are given."""

    def __init__(self, cluster: Cluster, node: Node) -> None:
        self.cluster = cluster
        self.node = node

    def start(self, devices: Mapping[str, Mapping[str, str]]) -> None:
        """Publish them, by name with their attributes; returns when that is done."""
        file = self.node.folder / "driver.json"
        file.write_text(json.dumps(devices))
        self.node.start(
            "driver",
            [
                str(self.node.binaries / "gpus"),
                f"--kubeconfig={self.cluster.kubeconfig}",
                f"--node={self.node.name}",
                f"--devices={file}",
            ],
        )
        what = f"ResourceSlice of {self.node.name} (see {self.node.log('driver')})"
        wait(what, lambda: self.published() == sorted(devices), PUBLISHED_SECONDS)

    def stop(self) -> None:
        """Its slices are taken away, which the kubelet else does after a while."""
        self.node.stop("driver")
        self.cluster.kubectl("delete", "resourceslices", f"--field-selector={self._selector()}")

    def published(self) -> list[str]:
        """The names of what its slices have."""
        query = ["get", "resourceslices", f"--field-selector={self._selector()}", "-o", "json"]
        items = json.loads(self.cluster.kubectl(*query))["items"]
        return sorted(each["name"] for item in items for each in item["spec"].get("devices", ()))

    def prepared(self) -> dict[str, str]:
        """Claim to the UUID that it was given last, by the driver's own record."""
        lines = self.node.log("driver").read_text().splitlines()
        told = [json.loads(line) for line in lines if line.startswith("{")]
        return {each["claim"]: each["uuid"] for each in told}

    def _selector(self) -> str:
        return f"spec.nodeName={self.node.name},spec.driver={DRIVER}"


@contextmanager
def resource_driver(
    cluster: Cluster, node: str, devices: Mapping[str, Mapping[str, str]]
) -> Iterator[ResourceDriver]:
    """A driver of that node, and its DeviceClass, within the block."""
    driver = ResourceDriver(cluster, cluster.node(node))
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(DEVICE_CLASS))
    try:
        driver.start(devices)
        yield driver
    finally:
        driver.stop()
        cluster.kubectl("delete", "deviceclass", DRIVER, "--ignore-not-found")
