"""Pods as users start them: of one container, on a node of one's choice, with devices."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from cluster.cluster import Cluster
from cluster.pods import Pod, pods
from cluster.process import wait

__all__ = ["FOREVER", "Workload", "workload"]

FOREVER = ("sleep", "infinity")

STARTED_SECONDS = 90
"""Bound for a pod to get as far as it is to get."""

CONTAINER = "main"


class Workload:
    """A namespace with pods of busybox in it."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace

    def start(
        self,
        name: str,
        node: str = "",
        *,
        command: Sequence[str] = FOREVER,
        limits: Mapping[str, str] | None = None,
        restart: str = "Never",
        claim: str = "",
        image: str = "localhost/busybox:1",
        **spec: Any,
    ) -> None:
        """A pod of that name.

        Args:
            node: it may be on no other; empty: the scheduler's choice.
            limits: of its container, such as nvidia.com/gpu.
            claim: a ResourceClaim of the namespace.
            spec: what else its spec has.
        """
        container: dict[str, Any] = {
            "name": CONTAINER,
            "image": image,
            "command": list(command),
            "imagePullPolicy": "IfNotPresent",
            "resources": {"limits": dict(limits or {})},
        }
        whole: dict[str, Any] = {
            "restartPolicy": restart,
            # Whoever sleeps as a container's first process hears no signal.
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": False,
        }
        if node:
            whole["nodeSelector"] = {"kubernetes.io/hostname": node}
        if claim:
            whole["resourceClaims"] = [{"name": "gpu", "resourceClaimName": claim}]
            container["resources"]["claims"] = [{"name": "gpu"}]
        container |= spec.pop("container", {})
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": {"pod": name}},
            "spec": {**whole, **spec, "containers": [container]},
        }
        self.apply(pod)

    def apply(self, document: Mapping[str, Any]) -> None:
        """Any object of the namespace."""
        self.kubectl("apply", "-f", "-", stdin=json.dumps(document))

    def running(self, name: str) -> Pod:
        """The pod, once it is ready."""
        (found,) = pods(self.cluster, self.namespace, f"pod={name}", 1)
        return found

    def status(self, name: str) -> dict[str, Any]:
        """Of the pod, as the API server has it."""
        found: dict[str, Any] = json.loads(self.kubectl("get", "pod", name, "-o", "json"))["status"]
        return found

    def container(self, name: str) -> dict[str, Any]:
        """The status of its container; empty while there is none."""
        statuses = self.status(name).get("containerStatuses", [])
        return dict(statuses[0]) if statuses else {}

    def wait_phase(self, name: str, phase: str) -> None:
        """Until the pod is in that phase."""
        what = f"{name} {phase}"
        wait(what, lambda: self.status(name).get("phase") == phase, STARTED_SECONDS)

    def wait_restarted(self, name: str) -> None:
        """Until its container has died, and been started again."""

        def again() -> bool:
            found = self.container(name)
            return found.get("restartCount", 0) > 0 and "running" in found["state"]

        wait(f"{name} started again", again, STARTED_SECONDS)

    def delete(self, *names: str) -> None:
        """These pods are gone when it returns."""
        self.kubectl("delete", "pod", "--ignore-not-found", *names, timeout=90)

    def kubectl(self, *args: str, stdin: str | None = None, timeout: float = 60) -> str:
        return self.cluster.kubectl("-n", self.namespace, *args, stdin=stdin, timeout=timeout)


@contextmanager
def workload(cluster: Cluster, namespace: str) -> Iterator[Workload]:
    """A namespace for pods within the block. Its pods are gone after it, and itself soon."""
    cluster.kubectl("create", "namespace", namespace)
    account = ["wait", "--for=create", "--timeout=60s", "serviceaccount/default"]
    found = Workload(cluster, namespace)
    try:
        found.kubectl(*account, timeout=70)
        yield found
    finally:
        found.kubectl("delete", "pod", "--all", "--grace-period=1", timeout=120)
        cluster.kubectl("delete", "namespace", namespace, "--wait=false")
