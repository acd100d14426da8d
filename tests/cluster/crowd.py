"""More agents than the cluster has nodes: pods that say they are on nodes of their own.

They are the chart's own agents but for the node name, and EndpointSlices written by hand say of
each that it is on that node. Exec, ports and probes are the real ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.pods import Pod, pods
from cluster.release import Release

__all__ = ["crowd"]

LABEL = "crowd"
"""Instead of an agent's labels: its Service must not find them on the nodes they really run on."""

STARTED_SECONDS = 300
"""Bound for the pods to be there: each takes the better part of a second of a processor."""


@contextmanager
def crowd(release: Release, count: int) -> Iterator[list[Pod]]:
    """`count` agents on nodes named after their pods; gone after the block."""
    daemons = json.loads(release.kubectl("get", "daemonset", "-o", "json"))["items"]
    (daemon,) = daemons
    template: dict[str, Any] = daemon["spec"]["template"]
    template["metadata"]["labels"] = {"app": LABEL}
    (container,) = template["spec"]["containers"]
    for variable in container["env"]:
        if variable["name"] == "MCP_GPU_NODE_NAME":
            variable["valueFrom"] = {"fieldRef": {"fieldPath": "metadata.name"}}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": LABEL},
        "spec": {
            "replicas": count,
            "selector": {"matchLabels": {"app": LABEL}},
            "template": template,
        },
    }
    release.kubectl("apply", "-f", "-", stdin=json.dumps(deployment))
    try:
        flags = [f"deployment/{LABEL}", f"--timeout={STARTED_SECONDS}s"]
        release.kubectl("rollout", "status", *flags, timeout=STARTED_SECONDS + 10)
        found = pods(release.cluster, release.namespace, f"app={LABEL}", count)
        release.kubectl("apply", "-f", "-", stdin=json.dumps(_slice(release, daemon, found)))
        yield found
    finally:
        release.kubectl("delete", "endpointslice", LABEL, "--ignore-not-found")
        gone = [f"deployment/{LABEL}", "--cascade=foreground", "--grace-period=1"]
        release.kubectl("delete", *gone, timeout=180)


def _slice(release: Release, daemon: dict[str, Any], found: list[Pod]) -> dict[str, Any]:
    service = f"{release.fullname}-agent"
    labels = daemon["metadata"]["labels"] | {
        "kubernetes.io/service-name": service,
        "endpointslice.kubernetes.io/managed-by": LABEL,
    }
    endpoints = [
        {
            "addresses": [pod.address],
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "nodeName": pod.name,
            "targetRef": {
                "kind": "Pod",
                "namespace": pod.namespace,
                "name": pod.name,
                "uid": pod.uid,
            },
        }
        for pod in found
    ]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": LABEL, "labels": labels},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "mcp", "protocol": "TCP", "port": 8080}],
    }
