"""Pods that answer: one on each node, each with the name of its node at port 8080."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.cluster import Access, Cluster
from cluster.plan import API_SERVICE_ADDRESS
from cluster.pods import Pod, pods
from cluster.process import CommandError, run

__all__ = ["PORT", "SELECTOR", "answers", "ask_api_server", "fetch", "probes", "stranger"]

PORT = 8080
SELECTOR = "app=probe"

FETCH_SECONDS = 3
"""What a fetch waits for: nobody here takes more than milliseconds who answers at all."""

CASCADE = ("--cascade=foreground", "--timeout=60s")

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
        # A namespace looks for the last of its pods ever more seldom.
        cluster.kubectl(
            "-n", namespace, "delete", "daemonsets,deployments", "--all", *CASCADE, timeout=180
        )
        cluster.kubectl("delete", "namespace", namespace, timeout=180)


@contextmanager
def stranger(cluster: Cluster, namespace: str, image: str, port: int = PORT) -> Iterator[Pod]:
    """A pod of somebody else's on n1, in a namespace that is there; it answers at that port."""
    quiet = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {
        "name": "stranger",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["httpd", "-f", "-p", str(port), "-h", "/etc"],
        "securityContext": quiet,
    }
    spec = {"nodeName": "n1", "terminationGracePeriodSeconds": 1, "containers": [container]}
    labels = {"app": "stranger"}
    metadata = {"name": "stranger", "namespace": namespace, "labels": labels}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(pod))
    try:
        (found,) = pods(cluster, namespace, "app=stranger", 1)
        yield found
    finally:
        cluster.kubectl("-n", namespace, "delete", "pod", "stranger")


def fetch(pod: Pod, address: str, path: str = "") -> str | None:
    """What a pod gets from there; None if nothing, or not all of it, in FETCH_SECONDS."""
    # Both are the container's own: wget's own limit crashes in Debian's build of busybox.
    enter = ["nsenter", f"--target={pod.process.pid}", "--net", "--mount", "--"]
    wget = ["/bin/timeout", str(FETCH_SECONDS), "/bin/wget", "-q", "-O", "-"]
    try:
        return run(*enter, *wget, f"http://{address}:{PORT}/{path}").strip()
    except CommandError:
        return None


def answers(sender: Pod, url: str) -> bool:
    """Whether a pod gets any answer over HTTP from there, in FETCH_SECONDS."""
    curl = ["curl", "-sk", "--noproxy", "*", "-m", str(FETCH_SECONDS), "-o", "/dev/null", url]
    try:
        sender.run(*curl)
    except CommandError:
        return False
    return True


def ask_api_server(pod: Pod, token: str, path: str) -> int:
    """The status of the API server's answer to a GET by a program in the pod's network."""
    program = (
        "import ssl, sys, urllib.request as http\n"
        "url, authority, token = sys.argv[1:]\n"
        "trust = http.HTTPSHandler(context=ssl.create_default_context(cafile=authority))\n"
        "ask = http.Request(url, headers={'Authorization': f'Bearer {token}'})\n"
        "try:\n"
        "    print(http.build_opener(trust).open(ask, timeout=10).status)\n"
        "except http.HTTPError as error:\n"
        "    print(error.code)\n"
    )
    url = f"https://{API_SERVICE_ADDRESS}{path}"
    authority = str(pod.node.plan.folder / "pki" / "ca.crt")
    ask = ["env", "NO_PROXY=*", sys.executable, "-c", program, url, authority, token]
    return int(pod.run(*ask))
