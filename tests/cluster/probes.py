"""Pods that answer: one on each node, each with the name of its node at port 8080."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cluster.cluster import Access
from cluster.pods import Pod
from cluster.process import CommandError

__all__ = ["PORT", "SELECTOR", "fetch", "probes"]

PORT = 8080
SELECTOR = "app=probe"

FETCH_SECONDS = 3
"""What a fetch waits for: nobody here takes more than milliseconds who answers at all."""

MANIFEST = """
apiVersion: v1
kind: Namespace
metadata: {name: NAMESPACE}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: probe, namespace: NAMESPACE}
spec:
  selector: {matchLabels: {app: probe}}
  template:
    metadata: {labels: {app: probe}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: probe
          image: IMAGE
          imagePullPolicy: IfNotPresent
          env:
            - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
          command: [sh, -c]
          args:
            - |
              mkdir -p /tmp/www && echo "$NODE" >/tmp/www/index.html
              head -c 100000 /dev/zero >/tmp/www/large
              exec httpd -f -p 8080 -h /tmp/www
          readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: NAMESPACE}
spec:
  clusterIP: None
  selector: {app: probe}
  ports: [{port: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: probe, namespace: NAMESPACE}
spec:
  type: NodePort
  selector: {app: probe}
  ports: [{port: 80, targetPort: 8080}]
"""


@contextmanager
def probes(cluster: Access, namespace: str, image: str) -> Iterator[None]:
    """They are ready within the block, and gone after it."""
    manifest = MANIFEST.replace("NAMESPACE", namespace).replace("IMAGE", image)
    cluster.kubectl("apply", "-f", "-", stdin=manifest)
    try:
        rollout = ["rollout", "status", "daemonset/probe", "--timeout=120s"]
        cluster.kubectl("-n", namespace, *rollout, timeout=130)
        yield
    finally:
        cluster.kubectl("delete", "namespace", namespace, timeout=120)


def fetch(pod: Pod, address: str, path: str = "") -> str | None:
    """What a pod gets from there; None if nothing, or not all of it, in FETCH_SECONDS."""
    url = f"http://{address}:{PORT}/{path}"
    wget = ["busybox", "wget", "-q", "-O", "-", "-T", str(FETCH_SECONDS), url]
    try:
        return pod.run("timeout", str(2 * FETCH_SECONDS), *wget).strip()
    except CommandError:
        return None
