"""A pod of the test cluster, from the outside and from the inside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.cluster import Cluster
from cluster.node import CTR, Node
from cluster.process import CommandError, Process, run, wait

__all__ = ["Pod", "pods"]

READY_SECONDS = 180
"""Bound for a pod to be ready, its image being there already."""


@dataclass(frozen=True)
class Pod:
    """A running pod, seen at one moment. `process` is the first one of its first container, whose
    id `container` is."""

    namespace: str
    name: str
    uid: str
    address: str
    node: Node
    process: Process
    container: str

    @property
    def wires(self) -> list[str]:
        """Words to put before a command so that it uses the network of the pod."""
        return ["nsenter", f"--net=/proc/{self.process.pid}/ns/net", "--"]

    def run(self, *argv: str, stdin: str | None = None, timeout: float = 60) -> str:
        """A program of this machine, in the network of the pod.

        Raises:
            CommandError: it failed, or took longer than `timeout` seconds.
        """
        return run(*self.wires, *argv, stdin=stdin, timeout=timeout)

    @property
    def port(self) -> str:
        """The node's end of the pod's wire."""
        number = json.loads(self.run("ip", "-json", "link", "show", "eth0"))[0]["link_index"]
        links = json.loads(run(*self.node.wires(), "ip", "-json", "link"))
        return str(next(link["ifname"] for link in links if link["ifindex"] == number))


def pods(cluster: Cluster, namespace: str, selector: str, count: int) -> list[Pod]:
    """The ready pods with those labels, by node; waits until there are `count`.

    Raises:
        TimeoutError: there are not within READY_SECONDS.
    """
    found: list[Pod] = []

    def complete() -> bool:
        query = ["-n", namespace, "get", "pods", "-l", selector, "-o", "json"]
        items = json.loads(cluster.kubectl(*query))["items"]
        found[:] = [pod for item in items if (pod := _pod(cluster, item))]
        return len(found) == count

    wait(f"{count} pods {selector} in {namespace}", complete, READY_SECONDS)
    return sorted(found, key=lambda pod: (pod.node.name, pod.name))


def _pod(cluster: Cluster, item: dict[str, object]) -> Pod | None:
    metadata, status = item["metadata"], item["status"]
    assert isinstance(metadata, dict)
    assert isinstance(status, dict)
    ready = {c["type"]: c["status"] for c in status.get("conditions", [])}.get("Ready") == "True"
    if not ready or "deletionTimestamp" in metadata:
        return None
    spec = item["spec"]
    assert isinstance(spec, dict)
    node = cluster.node(spec["nodeName"])
    container = status["containerStatuses"][0]["containerID"].removeprefix("containerd://")
    process = first_process(node, container)
    if process is None:
        return None
    identity = metadata["namespace"], metadata["name"], metadata["uid"]
    return Pod(*identity, status["podIP"], node, process, container)


def first_process(node: Node, container: str) -> Process | None:
    """Of a running container, by the name that containerd has for it."""
    try:
        tasks: Sequence[str] = node.run(*CTR, "tasks", "list").splitlines()
    except CommandError:
        return None
    found = [line.split()[1] for line in tasks if line.startswith(container)]
    return Process.of(int(found[0])) if found else None
